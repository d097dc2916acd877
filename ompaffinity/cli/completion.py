"""``completion``: a completion script for bash, zsh or fish, written from the table of options."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ompaffinity.cli.help import SUMMARIES
from ompaffinity.cli.options import VERBS
from ompaffinity.errors import RequestError

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.placement.options import Option

FILES = ("FILE", "PATH", "DIR", "PLAN.json|live")
"""The metavars of options whose value is a path."""
BASH = """\
_ompaffinity() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb=${{COMP_WORDS[1]}} words index
    COMPREPLY=()
    for ((index = 2; index < COMP_CWORD; index++)); do
        # Behind -- comes a command of the user's.
        if [[ ${{COMP_WORDS[index]}} == -- ]]; then
            COMPREPLY=($(compgen -c -f -- "$current"))
            return
        fi
    done
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "{verbs} help --help --version" -- "$current"))
        return
    fi
    case "$verb:$before" in
{values}
    esac
    case "$verb" in
        help) words="{verbs}" ;;
{options}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _ompaffinity ompaffinity
"""
ZSH = """\
#compdef ompaffinity
autoload -U +X bashcompinit && bashcompinit
"""


def run_completion(values: dict[str, Any]) -> int:
    """Print the completion script of the shell in `values`."""
    if "shell" not in values:
        raise RequestError("--shell is missing; write ompaffinity completion --shell bash")
    script = {"bash": bash_script, "zsh": lambda: ZSH + bash_script(), "fish": fish_script}[values["shell"]]()
    sys.stdout.write(script)
    return 0


def bash_script() -> str:
    """Return the script for bash; zsh runs it by its own bashcompinit."""
    values, words = [], []
    for verb, options in VERBS.items():
        files = [option.flag for option in options if _names_file(option)]
        if files:
            pattern = "|".join(f"{verb}:{flag}" for flag in files)
            values.append(f'        {pattern}) COMPREPLY=($(compgen -f -- "$current")); return ;;')
        for option in options:
            if option.choices:
                choices = " ".join(option.choices)
                values.append(
                    f'        {verb}:{option.flag}) COMPREPLY=($(compgen -W "{choices}" -- "$current")); return ;;'
                )
        flags = " ".join(option.flag for option in options if option.flag.startswith("-"))
        words.append(f'        {verb}) words="{flags} --help" ;;')
    return BASH.format(verbs=" ".join(VERBS), values="\n".join(values), options="\n".join(words))


def fish_script() -> str:
    """Return the script for fish."""
    lines = ["complete -c ompaffinity -f"]
    for verb in VERBS:
        lines.append(f"complete -c ompaffinity -n __fish_use_subcommand -a {verb} -d {_quoted(SUMMARIES[verb])}")
    for verb, options in VERBS.items():
        for option in options:
            if not option.flag.startswith("-"):
                continue
            words = ["complete", "-c", "ompaffinity", "-n", f"'__fish_seen_subcommand_from {verb}'"]
            words += ["-l", option.flag[2:], "-d", _quoted(option.help)]
            if _names_file(option):
                words += ["-r", "-F"]
            elif option.choices:
                words += ["-x", "-a", _quoted(" ".join(option.choices))]
            elif option.kind != "flag":
                words.append("-x")
            lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def _names_file(option: Option) -> bool:
    return option.metavar in FILES


def _quoted(text: str) -> str:
    """Return a text in quotes of fish, where backslash and quote alone are special."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
