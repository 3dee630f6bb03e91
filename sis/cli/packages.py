"""`sis packages`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sis.cli.options import Data, Json

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The library of automation packages.")


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Holds package.yaml.")],
    json: Json = False,
    data: Data = None,
) -> None:
    """Store a package. A version, once pushed, keeps its content; pushing the same again is safe."""
    from sis.cli import failures, terminal, words
    from sis.client import Client
    from sis.packages import archive
    from sis.packages.archive import InvalidArchive
    from sis.packages.manifest import InvalidManifest

    try:
        packed = archive.pack(directory)
        archive.read_manifest(packed)
    except InvalidManifest as error:
        for problem in error.problems:
            failures.say(f"{directory / 'package.yaml'}: {problem}")
        raise typer.Exit(1) from None
    except InvalidArchive as error:
        failures.say(str(error))
        raise typer.Exit(1) from None
    with Client.find(data) as client:
        response = client.packages.push(packed)
    if json:
        print(terminal.document(response))
        return
    package = response.package
    what = "was there already" if response.existed else "pushed"
    print(f"{package.name} {package.version} {what}: {words.size(package.size_bytes)}, SHA-256 {package.digest}")


@app.command("list")
def list_(json: Json = False, data: Data = None) -> None:
    """List the packages, by name, newest version first."""
    from sis.cli import terminal, words
    from sis.client import Client
    from sis.queue.v1 import package_service_pb2 as pb

    with Client.find(data) as client:
        found = list(client.packages.all())
    if json:
        print(terminal.document(pb.ListPackagesResponse(packages=found)))
        return
    out = terminal.console()
    table = terminal.table(out, "Name", "Version", "Publisher", "Description", "Pushed On", "Digest")
    for each in found:
        table.add_row(
            terminal.cell(each.name),
            terminal.cell(each.version),
            terminal.cell(each.publisher),
            terminal.cell(each.description),
            words.local_time(each.push_time),
            each.digest[:12],
        )
    out.print(table if found else "No packages")


@app.command()
def show(
    package: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    json: Json = False,
    data: Data = None,
) -> None:
    """Show a package: its operations, their inputs and outputs."""
    from sis.cli import terminal, values
    from sis.cli.details import package_page
    from sis.client import Client

    reference = values.package("PACKAGE", package)
    with Client.find(data) as client:
        found = client.packages.get(reference.name, reference.version)
    if json:
        print(terminal.document(found))
    else:
        package_page(terminal.console(), found)
