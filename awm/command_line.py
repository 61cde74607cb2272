"""The ``--config FILE.py:RECIPE --config.section.key=value`` command line, with errors a person can act on."""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from awm.configuration import default_config, flatten
from awm.registry import nearest

JSON_LOADER = Path(__file__).with_name("json_config.py")

USAGE = """\
usage: {program} --config FILE.py:RECIPE [--config.KEY=VALUE ...]
       {program} --config RUN/config.json [--config.KEY=VALUE ...]

{purpose}

recipes:   config/awm.py lists them; for example config/awm.py:geneval_sd3_no_cfg_1node
override:  --config.train.learning_rate=1e-4 --config.sample.num_steps=10 --config.reward_fn=geneval=1,pickscore=0.3
keys:      {program} --help-keys prints every key with its default
"""


def parse(argv: list[str], *, program: str, purpose: str) -> ConfigDict:
    """The locked configuration that ``argv`` (without the program name) asks for.

    Prints the usage and exits for ``--help``.

    Raises:
        ValueError: an unknown key or recipe, or a value of the wrong type.
    """
    if not argv or "--help" in argv or "-h" in argv:
        print(USAGE.format(program=program, purpose=purpose))
        sys.exit(0 if argv else 2)
    if "--help-keys" in argv:
        print("\n".join(f"{key} = {value!r}" for key, value in flatten(default_config().to_dict()).items()))
        sys.exit(0)
    arguments = [f"--{a.removeprefix('--')}" if a.startswith("--config") else a for a in argv]
    path, recipe_file = _config_argument(arguments)
    rewards, replace, rest = _split_rewards(arguments)
    urls_of, rest = _split_urls(rest)
    _check_keys(rest)
    if path.endswith(".json"):
        rest = [a.replace(path, f"{JSON_LOADER}:{path}") if path in a else a for a in rest]
    elif not recipe_file.is_file():
        raise ValueError(f"no configuration file {recipe_file}; give FILE.py:RECIPE, such as config/awm.py:quickstart.")
    else:
        # A recipe may import its neighbours (config.base) whether or not its repository is installed.
        sys.path.insert(0, str(recipe_file.resolve().parent.parent))
    config, extra = _read_flags([program, *rest])
    if extra:
        raise ValueError(f"do not know what to do with {' '.join(extra)!r}; overrides look like --config.key=value.")
    weights = rewards if replace else config.reward_fn.to_dict() | rewards
    with config.unlocked():
        config.reward_fn = ConfigDict(weights, allow_dotted_keys=True)
        servers = config.reward_server.urls_of.to_dict() | urls_of
        config.reward_server.urls_of = ConfigDict(servers, allow_dotted_keys=True)
    return config


def split_dry_run(argv: list[str]) -> tuple[bool, int | None, list[str]]:
    """Take ``--dry_run`` and ``--world_size N`` out of ``argv``; dashes do for underscores.

    Returns:
        Whether only the plan is wanted, the ranks to plan for if given, and the other arguments.

    Raises:
        ValueError: a world size without a dry run, or one that is no number of ranks.
    """
    wanted, world_size, rest = False, None, []
    remaining = iter(argv)
    for argument in remaining:
        name, separator, value = argument.partition("=")
        name = name.replace("-", "_")
        if name == "__dry_run" and not separator:
            wanted = True
        elif name == "__world_size":
            value = value if separator else next(remaining, "")
            if not value.isdecimal() or int(value) < 1:
                raise ValueError(f"--world_size={value} is no number of ranks; give 1 or more, as in --world_size 8.")
            world_size = int(value)
        else:
            rest.append(argument)
    if world_size is not None and not wanted:
        raise ValueError("--world_size plans for so many ranks with --dry_run; a run gets its ranks from torchrun.")
    return wanted, world_size, rest


def split_memory_gb(argv: list[str], *, only_plan: bool) -> tuple[float | None, list[str]]:
    """Take ``--memory_gb N`` out of ``argv``; dashes do for underscores.

    Returns:
        GiB of the GPU to propose settings for if given, and the other arguments.

    Raises:
        ValueError: a size without a dry run, or one that is no number above 0.
    """
    memory, rest = None, []
    remaining = iter(argv)
    for argument in remaining:
        name, separator, value = argument.partition("=")
        if name.replace("-", "_") != "__memory_gb":
            rest.append(argument)
            continue
        value = value if separator else next(remaining, "")
        try:
            memory = float(value)
        except ValueError:
            memory = 0.0
        if not 0 < memory < float("inf"):
            raise ValueError(f"--memory_gb={value} is no size of a GPU; give GiB, as in --memory_gb 24.")
    if memory is not None and not only_plan:
        raise ValueError("--memory_gb proposes settings with --dry_run; a run sees how much memory its GPU has.")
    return memory, rest


def _read_flags(argv: list[str]) -> tuple[ConfigDict, list[str]]:
    """The configuration and what is left of ``argv``, by ml_collections' own flag."""
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        extra = values(argv)[1:]
        return holder.value, extra
    except flags.Error as error:
        raise ValueError(str(error)) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the configuration does not fit: {error}") from error


def _config_argument(arguments: list[str]) -> tuple[str, Path]:
    """What follows ``--config``, and the file in it."""
    for position, argument in enumerate(arguments):
        value = None
        if argument == "--config" and position + 1 < len(arguments):
            value = arguments[position + 1]
        elif argument.startswith("--config="):
            value = argument.removeprefix("--config=")
        if value is not None:
            return value, Path(value.partition(":")[0])
    raise ValueError("no --config FILE.py:RECIPE given; for example --config config/awm.py:quickstart.")


def _split_rewards(arguments: list[str]) -> tuple[dict[str, float], bool, list[str]]:
    """The overrides of ``reward_fn``, which may name any reward and so are not the flag library's business.

    ``--config.reward_fn.NAME=WEIGHT`` adds or changes one reward, ``--config.reward_fn=NAME=WEIGHT,...`` replaces
    them all.

    Returns:
        Weights by name, whether they replace the recipe's, and the other arguments.
    """
    rewards: dict[str, float] = {}
    replace, rest = False, []
    for argument in arguments:
        if argument.startswith("--config.reward_fn."):
            rewards |= _weights(argument.removeprefix("--config.reward_fn."), argument)
        elif argument.startswith("--config.reward_fn="):
            rewards, replace = _weights(argument.removeprefix("--config.reward_fn="), argument), True
        else:
            rest.append(argument)
    return rewards, replace, rest


def _weights(text: str, argument: str) -> dict[str, float]:
    try:
        pairs = [pair.partition("=") for pair in text.split(",")]
        return {name: float(weight) for name, _, weight in pairs}
    except ValueError as error:
        raise ValueError(f"{argument} needs numbers: --config.reward_fn=geneval=1.0,pickscore=0.3") from error


def _split_urls(arguments: list[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The servers of single scorers, ``--config.reward_server.urls_of.NAME=URL,...``, and the other arguments."""
    servers: dict[str, tuple[str, ...]] = {}
    rest = []
    for argument in arguments:
        if not argument.startswith(("--config.reward_server.urls_of.", "--config.reward_server.urls_of=")):
            rest.append(argument)
            continue
        scorer, _, urls = argument.removeprefix("--config.reward_server.urls_of").removeprefix(".").partition("=")
        if not scorer or not all(url.startswith("http") for url in urls.split(",")):
            raise ValueError(
                f"{argument} needs a scorer and URLs: --config.reward_server.urls_of.geneval=http://a:18080,http://b:18080"
            )
        servers[scorer] = tuple(urls.split(","))
    return servers, rest


def _check_keys(arguments: list[str]) -> None:
    known = list(flatten(default_config().to_dict()))
    for argument in arguments:
        if argument.startswith("--config."):
            key, separator, _ = argument.removeprefix("--config.").partition("=")
            if key not in known:
                raise ValueError(f"unknown configuration key {key!r}.{nearest(key, known)} --help-keys lists them all.")
            if not separator:
                raise ValueError(f"--config.{key} needs a value: --config.{key}=VALUE")
