"""Where a short text is seen, and which texts belong there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True)
class Place:
    """Scenes and the texts that could stand in each of them.

    Attributes:
        scenes: prompts with one ``{}``, which stands for the text and its double quotes.
        texts: one to three words or numbers each.
    """

    scenes: tuple[str, ...]
    texts: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(*parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(words) for words in product(*parts))


def _numbered(nouns: Iterable[str], numbers: Iterable[int]) -> tuple[str, ...]:
    return _phrases(tuple(nouns), [str(number) for number in numbers])


SHOP = Place(
    scenes=(
        "A wooden sign in front of a small shop that says {}",
        "A chalkboard outside a cafe with the words {}",
        "A striped awning over a market stall printed with {}",
        "A shop window with gold lettering that reads {}",
        "A neon sign above a narrow doorway that says {}",
        "A paper banner hanging over a bakery counter that reads {}",
        "A food truck with {} painted on its side",
        "A hand-lettered card beside a basket that says {}",
        "A brass plate on a brick wall that reads {}",
    ),
    texts=(
        *_phrases(
            _words("Fresh Local Organic Handmade Seasonal Premium Artisan Daily"),
            _words("Bread Coffee Flowers Cheese Pottery Pastries Tea Honey Candles Fruit Fish Soap Pasta Jam Salad"),
        ),
        *("Grand Opening", "Open Daily", "Closed Monday", "Back Soon", "Cash Only", "Please Knock", "Special Offer"),
        *("Open Late", "Now Hiring", "Free Samples", "Ring Bell", "Half Price", "Final Sale", "Buy Local"),
        *_words("Bakery Pharmacy Florist Barber Tailor Bookshop Bistro Diner Gallery Laundry Butcher Grocery"),
    ),
)
STREET = Place(
    scenes=(
        "A green street sign on a pole at a quiet corner that reads {}",
        "A blue enamel plate on an old stone house that says {}",
        "A weathered road sign beside a country path that reads {}",
        "A bus stop in the rain whose sign says {}",
        "A cast-iron signpost covered in snow that says {}",
        "A city map on a kiosk with {} printed across the top",
        "A wooden arrow nailed to a tree that says {}",
    ),
    texts=_phrases(
        _words("Maple Oak Cedar Willow River Harbor Market Mill Church Garden Station Park King Queen Castle Bridge"),
        _words("Street Avenue Lane Road Square Court Drive"),
    ),
)
NUMBER = Place(
    scenes=(
        "A metal plate on a hotel door that says {}",
        "A bright overhead sign in an airport that reads {}",
        "A tiled wall in a subway station with the sign {}",
        "A ticket lying on a table, printed with {}",
        "A painted steel door in a warehouse marked {}",
        "A lit panel above an elevator that reads {}",
        "A yellow sign at the end of a dock that says {}",
    ),
    texts=_numbered(
        _words("Exit Gate Platform Room Pier Floor Bus Lane Track Locker Table Dock"),
        (1, 2, 3, 5, 7, 8, 9, 12, 14, 18, 21, 27, 33, 42, 56, 64, 75, 88, 104, 317),
    ),
)
BOOK = Place(
    scenes=(
        "An old leather-bound book on a desk with the title {}",
        "A paperback novel on a beach towel whose cover says {}",
        "A movie poster on a cinema wall with the title {}",
        "A vinyl record sleeve leaning on a shelf that reads {}",
        "A theater marquee at night showing {}",
        "A comic book cover with {} across the top",
        "A picture book in a child's room titled {}",
    ),
    texts=_phrases(
        ("The",),
        _words("Silent Golden Hidden Broken Distant Crimson Paper Winter Glass Empty Wandering Ancient Blue Little"),
        _words("River Garden Tower Island Forest Mirror Letter Harbor Clock Crown Lantern Road Mountain Orchard"),
    ),
)
EVENT = Place(
    scenes=(
        "A colorful poster taped to a lamp post that says {}",
        "A cloth banner stretched between two trees that reads {}",
        "A printed flyer pinned to a cork board with the words {}",
        "A stage backdrop with {} in huge letters",
        "A wristband on a table, printed with {}",
        "A balloon arch around a sign that reads {}",
        "A gymnasium scoreboard decorated with {}",
    ),
    texts=_phrases(
        _words("Jazz Summer Harvest Science Film Book Dance Spring Robot Chess Poetry Kite Garden Street Winter"),
        _words("Night Festival Fair Day Club Parade Show Contest Week"),
    ),
)
MOTTO = Place(
    scenes=(
        "A white coffee mug on a desk printed with {}",
        "A folded cotton t-shirt with {} on the chest",
        "A canvas tote bag hanging on a hook that says {}",
        "A framed print above a sofa that reads {}",
        "A sticker on a silver laptop that says {}",
        "A mural on a brick wall with the words {}",
        "A birthday card standing on a table that says {}",
        "A latte on a saucer with {} drawn in the foam",
        "A sandy beach with {} written in the sand",
    ),
    texts=(
        *_phrases(
            _words("Stay Keep Be Feel Think Live Play Dream"),
            _words("Curious Kind Bold Brave Calm Bright Wild Free Happy Simple Strong Gently"),
        ),
        *("Thank You", "Well Done", "Good Morning", "Sweet Dreams", "Never Give Up", "One More Page", "Hello World"),
        *("Best Friends", "Home Sweet Home", "Less Is More", "Take It Easy", "Why Not Today", "You Got This"),
    ),
)
SCREEN = Place(
    scenes=(
        "An arcade machine in a dark room whose screen shows {}",
        "A smartphone on a table displaying {}",
        "A digital billboard over a busy crossing that says {}",
        "A robot with a screen for a face that reads {}",
        "A car dashboard with a display that says {}",
        "An old computer monitor glowing with the word {}",
        "A smart watch on a wrist showing {}",
    ),
    texts=(
        *_numbered(("Level", "Score", "Stage", "Error", "Round"), (1, 2, 4, 6, 9, 11, 15, 20, 36, 50, 99, 404, 500)),
        *("Game Over", "Press Start", "New Record", "Low Battery", "Loading", "System Ready", "Insert Coin"),
        *("Welcome Back", "Try Again", "Access Granted", "Signal Lost", "Good Evening", "Update Complete", "Saving"),
        *_words("Ready Online Offline Victory Paused Connected Searching Warning Recording Charging"),
    ),
)
LABEL = Place(
    scenes=(
        "A glass bottle on a kitchen shelf with a label that says {}",
        "A cardboard box on a doorstep stamped with {}",
        "A tin can with a retro label that reads {}",
        "A jar tied with string, its paper tag reading {}",
        "A carton in a refrigerator printed with {}",
        "A paper bag on a counter labeled {}",
        "A wooden crate in a market stenciled with {}",
    ),
    texts=(
        *_phrases(
            _words("Apple Cherry Lemon Mango Peach Orange Berry Ginger Vanilla Almond Coconut Mint"),
            _words("Juice Syrup Cookies Soda Jelly Yogurt Granola Cider"),
        ),
        *_words("Flour Sugar Salt Pepper Rice Oats Cocoa Cinnamon Basil Olives Pickles Fragile Organic Recycle"),
    ),
)
DIGITS = Place(
    scenes=(
        "A brass house number on a front door that reads {}",
        "A racing car with {} painted on its hood",
        "A runner wearing a paper bib with the number {}",
        "A football jersey on a hanger with {} on its back",
        "A painted parking space on asphalt marked {}",
        "A red tram at a stop with {} on its front",
        "A birthday cake with {} written in icing",
    ),
    # No single digits: they would be found in whatever else is read in an image.
    texts=tuple(str(n) for n in (*range(12, 100, 7), *range(103, 1000, 37), *range(1024, 10000, 317))),
)
PLACES: tuple[Place, ...] = (SHOP, STREET, NUMBER, BOOK, EVENT, MOTTO, SCREEN, LABEL, DIGITS)

FINISHES: tuple[str, ...] = (
    *("", "", "", "", ", close-up photo", ", soft morning light", ", at night"),
    *(", watercolor illustration", ", cinematic lighting", ", shallow depth of field", ", flat vector style"),
    *(", in warm colors", ", black and white photograph"),
)
"""How a prompt may end; the empty ones make plain prompts the most frequent."""
