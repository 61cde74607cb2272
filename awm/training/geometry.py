"""How many images, batches and updates an epoch has, derived once and checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of one epoch.

    Attributes:
        num_prompts: distinct prompts per epoch, over all ranks.
        images_per_prompt: group size.
        world_size: number of ranks.
        sample_batch_size: images per rank and sampling batch (the last batch of an epoch may be smaller).
        micro_batch_size: samples per rank and training forward (the last of an update may be smaller).
        updates_per_pass: optimizer steps per pass over the samples.
        num_passes: passes over the samples.
    """

    num_prompts: int
    images_per_prompt: int
    world_size: int
    sample_batch_size: int
    micro_batch_size: int
    updates_per_pass: int
    num_passes: int

    @property
    def experiment(self) -> dict[str, int]:
        """What the numbers of a run depend on; the other sizes only say how the work is cut."""
        return {
            "prompts per epoch": self.num_prompts,
            "images per prompt": self.images_per_prompt,
            "updates per pass": self.updates_per_pass,
            "passes": self.num_passes,
        }

    @property
    def images(self) -> int:
        """Images per epoch over all ranks."""
        return self.num_prompts * self.images_per_prompt

    @property
    def images_per_rank(self) -> int:
        """Images per epoch and rank."""
        return self.images // self.world_size

    @property
    def sampling_batches(self) -> int:
        """Sampling batches per epoch and rank."""
        return -(-self.images_per_rank // self.sample_batch_size)

    @property
    def micro_batches_per_update(self) -> int:
        """Training forwards per rank and optimizer step."""
        return -(-self.images_per_rank // self.updates_per_pass // self.micro_batch_size)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.updates_per_pass * self.num_passes


def resolve_geometry(
    *,
    world_size: int,
    images_per_prompt: int,
    num_prompts: int | None,
    sampling_batches: int | None,
    sample_batch_size: int,
    micro_batch_size: int,
    micro_batches_per_pass: int | None,
    micro_batches_per_update: int | None,
    updates_per_pass: int | None,
    num_passes: int,
) -> Geometry:
    """Fill in what the configuration leaves open.

    Either ``num_prompts`` (sample.num_prompts_per_epoch) or ``sampling_batches`` (sample.num_batches_per_epoch)
    is given, and at most one of the two ways to say how many updates a pass has.

    Raises:
        ValueError: an impossible combination, naming the nearest possible one.
    """
    if num_prompts is None and sampling_batches is None:
        raise ValueError("set sample.num_prompts_per_epoch or sample.num_batches_per_epoch; both are unset.")
    if num_prompts is None:
        assert sampling_batches is not None
        num_prompts = _prompts_from_batches(world_size, sample_batch_size, sampling_batches, images_per_prompt)
    images = num_prompts * images_per_prompt
    if images % world_size:
        raise ValueError(_world_size_error(num_prompts, images_per_prompt, world_size))
    per_rank = images // world_size
    if sampling_batches is not None and sampling_batches != -(-per_rank // sample_batch_size):
        raise ValueError(
            f"sample.num_batches_per_epoch={sampling_batches} contradicts sample.num_prompts_per_epoch={num_prompts}: "
            f"{per_rank} images per rank in batches of {sample_batch_size} are {-(-per_rank // sample_batch_size)} "
            f"batches. Unset one of the two."
        )
    updates = _updates(per_rank, micro_batch_size, micro_batches_per_pass, micro_batches_per_update, updates_per_pass)
    if per_rank % updates:
        valid = [n for n in range(1, per_rank + 1) if per_rank % n == 0]
        raise ValueError(
            f"{per_rank} images per rank do not split into {updates} updates per pass; "
            f"set train.updates_per_inner_epoch to {_nearest(updates, valid)}."
        )
    return Geometry(
        num_prompts, images_per_prompt, world_size, sample_batch_size, micro_batch_size, updates, num_passes
    )


def require_whole_groups(sizes: Geometry, algorithm: str) -> None:
    """Refuse a split in which an optimizer step would get parts of groups, for objectives that need them whole.

    Raises:
        ValueError: naming the nearest number of updates, or of ranks, that is possible.
    """
    if sizes.updates_per_pass == 1:  # all images of all ranks are in it
        return
    if sizes.images_per_rank % sizes.images_per_prompt:
        ranks = [n for n in range(1, sizes.num_prompts + 1) if sizes.num_prompts % n == 0]
        raise ValueError(
            f"train.algorithm={algorithm!r} takes whole groups in every optimizer step, but {sizes.world_size} ranks "
            f"share {sizes.num_prompts} prompts, so that some group is on two of them; set "
            f"train.updates_per_inner_epoch=1, or use {_nearest(sizes.world_size, ranks)} ranks."
        )
    groups = sizes.images_per_rank // sizes.images_per_prompt
    if groups % sizes.updates_per_pass:
        valid = [n for n in range(1, groups + 1) if groups % n == 0]
        raise ValueError(
            f"train.algorithm={algorithm!r} takes whole groups in every optimizer step, but {groups} prompts per rank "
            f"do not split into {sizes.updates_per_pass} updates; set train.updates_per_inner_epoch to "
            f"{_nearest(sizes.updates_per_pass, valid)}."
        )


def _prompts_from_batches(world: int, batch: int, batches: int, images_per_prompt: int) -> int:
    images = world * batch * batches
    if images % images_per_prompt:
        valid = [n for n in range(1, 4 * batches + images_per_prompt + 1) if world * batch * n % images_per_prompt == 0]
        raise ValueError(
            f"{world} ranks x {batches} batches x {batch} images = {images} images are not a multiple of "
            f"sample.num_image_per_prompt={images_per_prompt}; set sample.num_batches_per_epoch to "
            f"{_nearest(batches, valid)}, or use sample.num_prompts_per_epoch, which fits any batch size."
        )
    return images // images_per_prompt


def _world_size_error(num_prompts: int, images_per_prompt: int, world: int) -> str:
    prompts = [n for n in range(1, num_prompts + world + 1) if n * images_per_prompt % world == 0]
    worlds = [n for n in range(1, 2 * world + 1) if num_prompts * images_per_prompt % n == 0]
    return (
        f"{num_prompts} prompts x {images_per_prompt} images = {num_prompts * images_per_prompt} images per epoch do "
        f"not split over {world} ranks; use {_nearest(num_prompts, prompts)} prompts (sample.num_prompts_per_epoch), "
        f"or {_nearest(world, worlds)} ranks."
    )


def _updates(per_rank: int, batch: int, per_pass: int | None, per_update: int | None, updates: int | None) -> int:
    total = -(-per_rank // batch)
    if per_pass is not None and per_pass != total:
        raise ValueError(
            f"train.num_batches_per_epoch={per_pass}, but {per_rank} images per rank in micro-batches of {batch} are "
            f"{total}; leave it unset, or set it to {total}."
        )
    if per_update is None:
        return updates or 1
    implied = -(-total // per_update)
    if updates is not None and updates != implied:
        raise ValueError(
            f"train.gradient_accumulation_steps={per_update} means {implied} updates over {total} micro-batches, "
            f"train.updates_per_inner_epoch says {updates}; unset one of them."
        )
    if total % per_update:
        raise ValueError(
            f"train.gradient_accumulation_steps={per_update} does not divide the {total} micro-batches of a pass; "
            f"use {_nearest(per_update, [n for n in range(1, total + 1) if total % n == 0])}."
        )
    return implied


def _nearest(value: int, valid: list[int]) -> str:
    """The valid numbers next to ``value``, as "45 or 50"."""
    below, above = [v for v in valid if v < value], [v for v in valid if v > value]
    return " or ".join(str(v) for v in [*below[-1:], *above[:1]])
