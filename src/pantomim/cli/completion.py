import re
from contextlib import suppress
from typing import Literal

from tyro.conf import Positional

from pantomim.cli.command_line import CommandLine, typed
from pantomim.cli.console import CONSOLE, say

BASH = """_pantomim() {{
    case "${{COMP_WORDS[1]}}" in
{cases}
        *) words="{names}" ;;
    esac
    [ "$COMP_CWORD" -eq 1 ] && words="{names}"
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _pantomim pantomim"""


@typed()
def completion(shell: Positional[Literal["bash", "zsh", "fish"]]) -> None:
    """Print what makes the tab key complete commands, their names and options in a shell.

    Examples:
        pantomim completion bash >> ~/.bashrc
        pantomim completion zsh >> ~/.zshrc
        pantomim completion fish > ~/.config/fish/completions/pantomim.fish

    Args:
        shell: Which one.
    """
    from pantomim.cli import COMMANDS

    words = {name: " ".join(_words(name)) for name in COMMANDS}
    if shell == "fish":
        say(f'complete -c pantomim -n __fish_use_subcommand -a "{" ".join(words)}"')
        for name, known in words.items():
            say(f'complete -c pantomim -n "__fish_seen_subcommand_from {name}" -a "{known}"')
        return
    cases = "\n".join(f'        {name}) words="{known}" ;;' for name, known in words.items())
    begin = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n" if shell == "zsh" else ""
    say(begin + BASH.format(cases=cases, names=" ".join(words)))


def _words(name: str) -> list[str]:
    """The options in the help of a command, and the names that it takes with theirs."""
    listed = _shown(name, [])
    if name in ("pretrain", "explain", "recipes"):
        from pantomim.recipes import BARE_METHODS, RECIPES

        return [*BARE_METHODS, *(recipe.name for recipe in RECIPES), *_shown(name, ["mae"])]
    if name in ("finetune", "segment"):
        return _shown(name, ["DATA"])
    below = (_shown(name, [word]) for word in listed if not word.startswith("-"))
    return [*dict.fromkeys([*listed, *(option for options in below for option in options)])]


def _shown(name: str, before: list[str]) -> list[str]:
    from pantomim.cli import COMMANDS

    with CONSOLE.capture() as shown, suppress(SystemExit):
        COMMANDS[name](CommandLine(name, [*before, "--help-all"]))
    known = re.findall(r"^ {0,2}(?:(--[\w.-]+)|([a-z][\w-]*)  )", shown.get(), re.MULTILINE)
    return [option or word for option, word in known]
