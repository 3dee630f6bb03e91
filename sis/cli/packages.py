"""`sis packages`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sis.cli.job_options import ParamFiles, Params, Timeout
from sis.cli.options import Data, Json

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The library of automation packages.")

Reference = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The highest version unless given.")]
Version = Annotated[str, typer.Option("--version", metavar="VERSION", help="The same as @VERSION.")]


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
def list_(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The versions of this package alone.")] = "",
    json: Json = False,
    data: Data = None,
) -> None:
    """List the packages, by name, newest version first."""
    from sis.cli import terminal
    from sis.cli.package_page import package_table
    from sis.client import Client
    from sis.queue.v1 import package_service_pb2 as pb

    with Client.find(data) as client:
        found = list(client.packages.all(name))
    if json:
        print(terminal.document(pb.ListPackagesResponse(packages=found)))
        return
    out = terminal.console()
    out.print(package_table(out, found) if found else "No packages")


@app.command()
def show(
    package: Reference,
    version: Version = "",
    json: Json = False,
    data: Data = None,
) -> None:
    """Show a package: its operations, their inputs and outputs, and how to put each on the queue."""
    from sis.cli import terminal, values
    from sis.cli.package_page import package_page
    from sis.client import Client

    reference = values.package_version(package, version)
    with Client.find(data) as client:
        found = client.packages.get(reference.name, reference.version)
    if json:
        print(terminal.document(found))
    else:
        package_page(terminal.console(), found)


@app.command()
def download(
    package: Reference,
    version: Version = "",
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="NAME-VERSION.tar.gz unless given.")
    ] = None,
    json: Json = False,
    data: Data = None,
) -> None:
    """Fetch the archive of a package; its digest is checked before the file is there."""
    from sis.cli import package_download, terminal, values, words
    from sis.client import Client

    reference = values.package_version(package, version)
    with Client.find(data) as client:
        archive, path = package_download.download(client, reference.name, reference.version, output)
    if json:
        print(terminal.document(archive))
    else:
        size = words.size(archive.size_bytes)
        print(f"{archive.name} {archive.version} is in {path}: {size}, SHA-256 {archive.digest}")


@app.command()
def delete(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    data: Data = None,
) -> None:
    """Delete one version of a package for good, unless jobs that have not ended need it."""
    from sis.client import Client

    with Client.find(data) as client:
        client.packages.delete(name, version)
    print(f"Package {name} {version} deleted")


@app.command()
def lint(directory: Annotated[Path, typer.Argument(metavar="DIR", help="Holds package.yaml.")]) -> None:
    """Name everything that is wrong with a package; exit 1 if anything is."""
    from sis.cli import package_actions

    package_actions.lint(directory)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="DIR", help="To be made; called as the package unless given.")
    ] = None,
) -> None:
    """Make a small package that works, to begin with."""
    from sis.cli import package_actions

    package_actions.new(name, directory or Path(name))


@app.command()
def schema() -> None:
    """Print the JSON Schema of package.yaml, for editors and programs."""
    from sis.packages import schema as published

    print(published.text(), end="")


@app.command()
def test(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Holds package.yaml.")],
    operation: Annotated[str, typer.Argument(metavar="OPERATION")],
    param: Params = None,
    param_file: ParamFiles = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Run an operation on this machine, as your own account, as an agent would; exit 0 on Success, 1 otherwise.

    It needs no stack. Ctrl-C asks the payload to end; the second one ends it.
    """
    from sis.cli import rehearsal
    from sis.cli.requests import JobOptions

    options = JobOptions(parameters=param or (), files=param_file or (), run_timeout=timeout)
    rehearsal.test(directory, operation, options, json=json)
