"""`pgorthanc completion`: the script that lets a shell complete commands and options."""

from __future__ import annotations

from dataclasses import dataclass

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call

_INSTALL = {
    "bash": (
        "Save it as ~/.local/share/bash-completion/completions/pgorthanc (package bash-completion),",
        "or as /usr/share/bash-completion/completions/pgorthanc for all users; open a new shell.",
    ),
    "zsh": (
        "Save it as _pgorthanc in a folder of $fpath, such as /usr/local/share/zsh/site-functions;",
        "then run: autoload -U compinit && compinit",
    ),
    "fish": ("Save it as ~/.config/fish/completions/pgorthanc.fish; it works immediately.",),
}


@dataclass(frozen=True)
class Completion:
    """The script for a shell, and where to save it."""

    shell: str
    install: str
    script: str


@commands.command("completion", connection=False)
@click.argument("shell", type=click.Choice(tuple(_INSTALL)))
def command(call: Call, *, shell: str) -> None:
    """Print the completion script for bash, zsh or fish.

    With it, the Tab key completes commands and options. Its first lines say where to save it.

    \b
    Examples:
      pgorthanc completion bash \\
          > ~/.local/share/bash-completion/completions/pgorthanc
      pgorthanc completion fish > ~/.config/fish/completions/pgorthanc.fish
    """
    from click import shell_completion

    group = click.get_current_context().find_root().command
    completer = {
        "bash": shell_completion.BashComplete,
        "zsh": shell_completion.ZshComplete,
        "fish": shell_completion.FishComplete,
    }[shell](group, {}, "pgorthanc", "_PGORTHANC_COMPLETE")
    # Not `completer.source()`: for bash it also starts the bash of this machine, to warn of old ones.
    script = shell_completion.ShellComplete.source(completer).strip()
    install = _INSTALL[shell]
    first, rest = ("#compdef pgorthanc\n", script) if shell == "zsh" else ("", script)
    comment = "".join(f"# {line}\n" for line in install)
    script = f"{first}{comment}\n{rest.removeprefix(first).strip()}\n"
    if call.as_json:
        output.emit(Completion(shell, " ".join(install), script))
    else:
        output.text(script)
