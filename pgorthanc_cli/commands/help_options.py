"""How the help of commands looks, and what is suggested for a misspelt one.

A docstring is: one line for the list of commands; what the command does; a paragraph
`Examples:`; and last a paragraph that begins with `Exit code`, shown below the options.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import click

from pgorthanc_cli.errors import UsageError

_NAMES_WIDTH = 26  # columns for the names of options in a help


class Option(click.Option):
    """An option with a section in the help, and with names of former releases, which are hidden."""

    def __init__(
        self, *declarations: Any, section: str = "Options", aliases: Iterable[str] = (), **attributes: Any
    ) -> None:
        super().__init__(*declarations, **attributes)
        self.section = section
        self.aliases = tuple(aliases)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let the parser take the hidden names, too."""
        names = self.opts
        # The help lists what `opts` holds: only the parser may see the hidden names there.
        self.opts = [*names, *self.aliases]
        super().add_to_parser(parser, ctx)
        self.opts = names


class _Helpful(click.Command):
    """Shows the summary before the usage, then the description, examples, options and exit codes.

    Fields in its help, such as `{checks}`, are filled in by `help_values`, when the help is shown.
    """

    help_values: Callable[[], Mapping[str, str]] | None = None

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        text = inspect.cleandoc(self.help or "")
        if self.help_values:
            text = text.format_map(self.help_values())
        summary, *paragraphs = text.split("\n\n")
        exit_codes = []
        if paragraphs and paragraphs[-1].startswith("Exit code"):
            exit_codes.append(paragraphs.pop())
        formatter.write_text(summary)
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        for paragraph in paragraphs:
            formatter.write_paragraph()
            formatter.write_text(paragraph)
        self.format_options(ctx, formatter)
        for paragraph in exit_codes:
            formatter.write_paragraph()
            formatter.write_text(paragraph)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options and sections, then the connection and the output."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        shared: dict[str, list[tuple[str, str]]] = {"Connection": [], "Output": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None or not isinstance(parameter, click.Option):
                continue
            title = parameter.section if isinstance(parameter, Option) else "Options"
            if "--help" in parameter.opts and shared["Output"]:
                title = "Output"
            names, explanation = record
            # Long names begin in one column, whether they have a short one or not.
            aligned = names if not names.startswith("--") else f"    {names}"
            records = (shared if title in shared else sections).setdefault(title, [])
            records.append((aligned, explanation))
        all_records = [record for records in (sections | shared).values() for record in records]
        width = min(max(len(names) for names, _ in all_records), _NAMES_WIDTH)
        for title, records in (sections | shared).items():
            if records:
                with formatter.section(title):
                    rows = [(name.ljust(width), explanation) for name, explanation in records]
                    formatter.write_dl(rows, col_max=_NAMES_WIDTH)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return --help, worded as the other options are."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = "Show this help."
        return option


class Command(_Helpful):
    """A command whose help has sections and examples."""


class Group(_Helpful, click.Group):
    """A group whose help lists its commands in their order of use, and that suggests names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which the commands were added."""
        return list(self.commands)

    def listed(self, ctx: click.Context) -> Mapping[str, Mapping[str, str]]:
        """Return the summaries of the commands by heading and name."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        return {
            "Commands": {
                name: command.get_short_help_str(limit=ctx.max_content_width or 80)
                for name, command in commands
                if command and not command.hidden
            }
        }

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by heading, then the options."""
        width = max(map(len, self.list_commands(ctx)))
        for title, summaries in self.listed(ctx).items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), summary) for name, summary in summaries.items()])
        super().format_options(ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the words name.

        Raises:
            UsageError: There is none; the hint names a similar one.
        """
        name = args[0]
        # Shell completion parses unfinished lines (resilient_parsing), and must not fail.
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            path = ctx.command_path
            raise UsageError(
                f"no such command: {' '.join((*path.split()[1:], name))}",
                _suggestion(name, self.list_commands(ctx), "All commands", f"{path} --help"),
            )
        return super().resolve_command(ctx, args)


def _suggestion(name: str, names: Iterable[str], listed: str, command: str) -> str:
    """Return a hint: the similar names, if there are any, and the command that lists all."""
    known = {known.lstrip("-"): known for known in names}
    similar = get_close_matches(name.lstrip("-"), known, n=2, cutoff=0.7)
    if not similar:
        return f"run: {command}"
    meant = " or ".join(known[match] for match in similar)
    return f"did you mean {meant}? {listed}: {command}"


def usage_error(error: click.UsageError) -> UsageError:
    """Return an error of click in our words: what is wrong in one line, and where the help is."""
    context = error.ctx
    path = context.command_path if context else "pgorthanc"
    if isinstance(error, click.NoSuchOption):
        parameters = context.command.params if context else []
        options = (o for o in parameters if isinstance(o, click.Option) and not o.hidden)
        names = [name for option in options for name in option.opts]
        # Options such as --config follow the command.
        where = " before the command" if context and isinstance(context.command, click.Group) else ""
        return UsageError(
            f"no such option{where}: {error.option_name}",
            _suggestion(error.option_name, names, "All options", f"{path} --help"),
        )
    parameter = error.param if isinstance(error, click.BadParameter) else None
    if isinstance(error, click.MissingParameter) or parameter is None:
        message = re.sub(r"'(.*?)'", r"\1", error.format_message(), count=1).rstrip(".")
        message = message[:1].lower() + message[1:]
    else:
        names = parameter.opts if isinstance(parameter, click.Option) else []
        name = max(names, key=len, default=parameter.human_readable_name)
        message = f"{name}: {error.message}".rstrip(".")
    return UsageError(message, f"run: {path} --help")
