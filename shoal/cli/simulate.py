"""`shoal simulate`: what each eviction policy, and more memory, would save for a recorded trace."""

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.failures import EXIT_REFUSED, complain


def simulate(
    trace: Annotated[
        Path,
        typer.Argument(
            metavar="TRACE",
            help="Lines of `time,model`, as of an access log; or events of the Controller "
            "(`shoal events --json`), which has the cold requests alone.",
        ),
    ],
    costs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Lines of `model,bytes,load_seconds`. Without them, an access log's models get "
            "sizes and times drawn at random.",
        ),
    ] = None,
    servers: Annotated[int, typer.Option(metavar="N", min=1, help="Servers that you have.")] = 1,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for models on each server, such as 24GiB. Default: a third of what all "
            "models take together.",
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option(metavar="NAME,…", help="The policies to compare, the present one first.")
    ] = "lru,gdsf",
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw cold seconds against memory there."),
    ] = None,
) -> None:
    """Tell what each policy and 10 to 50 % more memory would save in cold seconds.

    Cold seconds are what requests wait for loads. The trace is played through the Controller's own
    residency engine in virtual time, on servers like yours. It takes no Triton, and seconds.
    """
    from rich.console import Console

    from services.simulator import advice, recorded, sheets
    from services.simulator.files import Unreadable
    from shoal.sizes import parse_size

    console = Console()
    try:
        case = recorded.case(trace, costs, servers, parse_size(budget) if budget else None)
        for name, text in recorded.about(case).items():
            console.print(f"{name}: {text}", highlight=False)
        found = advice.outcomes(case, policy.split(","))
        if plot is not None:
            advice.plot(plot, case.name, found)
    except (Unreadable, OSError, ValueError) as error:
        complain(str(error))
        raise typer.Exit(EXIT_REFUSED) from error
    console.print("", sheets.drawn(advice.sheet(case.name, found)))
    console.print(f"\n{advice.LEGEND}", highlight=False)
