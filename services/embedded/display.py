"""What people see of a stack: a live table while it starts on a terminal, else plain lines."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from services.embedded.imported import Imported
from services.embedded.part import Event, State
from services.embedded.parts import Plan
from services.embedded.runs import Swept
from services.embedded.settings import StackSettings, variable
from shoal.sizes import format_size


class Terminal(Console):
    """A console that falls silent once its reader is gone: the stack must still stop properly."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Display:
    """Shows the states of `parts`, and what happens to them."""

    def __init__(self, console: Console, parts: Sequence[str]) -> None:
        self._console = console
        self._rows = dict.fromkeys(parts, (State.WAITING, ""))
        self._width = max(12, *(len(part) + 2 for part in parts))
        self._dead: set[str] = set()
        self._up = False
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(self._table(), console=console, transient=True, refresh_per_second=8)
            self._live.start()

    def line(self, text: str, style: str = "") -> None:
        try:
            self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        except OSError:  # the terminal is gone
            self._console.quiet = True

    def event(self, event: Event) -> None:
        if event.state is State.DIED:
            self._dead.add(event.part)
        self._rows[event.part] = (event.state, event.text)
        if self._live is not None:
            self._live.update(self._table())
        elif not self._up or event.state is not State.STARTING:
            self._plain(event)

    def up(self, plan: Plan, seconds: float, imported: Imported | None = None) -> None:
        """Show the summary of a stack that took `seconds` to start, and what it has `imported`."""
        self.close()
        self._up = True
        self.line("")
        for text in summary(plan, seconds, imported):
            self.line(text)
        self.line("")

    def close(self) -> None:
        """End the live table, if there is one."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _plain(self, event: Event) -> None:
        moment = time.strftime("%H:%M:%S ", time.localtime(event.time)) if self._up else ""
        again = "again " if event.state is State.READY and event.part in self._dead else ""
        name = f"{event.part:<{self._width}}"
        self.line(f"{moment}{name}{again}{event.text}", _STYLES.get(event.state, ""))

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, (state, text) in self._rows.items():
            busy = state in (State.WAITING, State.STARTING, State.STOPPING)
            mark = Spinner("dots") if busy else Text("●" if state is State.READY else "✗")
            table.add_row(mark, name, Text(text), style=_STYLES.get(state, ""))
        return table


_STYLES = {
    State.READY: "green",
    State.DIED: "bold red",
    State.STOPPING: "dim",
    State.STOPPED: "dim",
}


_NO_MODELS = "  There are no models yet: start with --repository DIR, or `shoal register DIR`."


def summary(plan: Plan, seconds: float, imported: Imported | None = None) -> list[str]:
    """Return lines that say what is where, and how to call it."""
    at = plan.endpoints
    cap = plan.settings.max_models
    models = f"{format_size(plan.budget)} for models" + (
        f", at most {cap} at a time" if cap else ""
    )
    servers = [f"  {name:<12}{address}   {models}" for name, address in at.tritons.items()]
    collector = [f"  Traces      OTLP http://{at.collector_http} and gRPC {at.collector_grpc}"]
    return [
        f"Shoal is ready after {seconds:.1f} s. Ctrl-C stops everything.",
        "",
        f"  Router      gRPC {at.router_grpc}   HTTP http://{at.router_http} (inference, metrics)",
        f"  Registry    {at.registry}",
        f"  Controller  {', '.join(at.controllers.values())}",
        *servers,
        *(collector if at.collector_http else []),
        f"  Logs        {plan.data / 'logs'}",
        *_models(imported),
        "",
        *_how_to_call(plan),
    ]


def _models(imported: Imported | None) -> list[str]:
    if imported is None or not (imported.models or imported.refused):
        return []
    first, *others = imported.lines()
    return [f"  Models      {first}", *(f"            {line}" for line in others)]


def _how_to_call(plan: Plan) -> list[str]:
    moved = " ".join(f"{name}={port}" for name, port in _moved(plan))
    client = f'tritonclient.grpc.InferenceServerClient("{plan.endpoints.router_grpc}")'
    return [
        *([f"  First, in another shell: export {moved}"] if moved else []),
        *([] if plan.settings.repository or plan.settings.data else [_NO_MODELS]),
        "  shoal models    lists the models, and which are in memory",
        "  shoal status    shows the state of every part",
        f"  {client}    works as with any Triton",
    ]


def _moved(plan: Plan) -> list[tuple[str, str]]:
    """Return the variables that tell other commands about ports other than the default ones."""
    at = plan.endpoints
    addresses = {
        "router_grpc_port": at.router_grpc,
        "router_http_port": at.router_http,
        "registry_port": at.registry,
        "controller_port": at.controller,
        "otlp_http_port": at.collector_http,
    }
    moved = [
        (variable(key), port)
        for key, address in addresses.items()
        if address
        and (port := address.rpartition(":")[2]) != str(StackSettings.model_fields[key].default)
    ]
    if len(at.controllers) > 1:
        moved.append((variable("controller"), ",".join(at.controllers.values())))
    return moved


def swept(found: Swept) -> str:
    return (
        f"Removed what a killed `shoal up` ({found.name}) had left behind: {found.processes} "
        f"processes, {found.regions} shared memory regions."
    )
