"""Write the Python of the contracts: `python tools/generate.py [--check | --freeze]`.

Generates `sis/**/*_pb2*.py[i]` from `protos/`, a descriptor image at `build/protos.binpb` for buf, and from both
`gateway/openapi.json`. With --check, writes nothing into the tree and exits 1 if what is committed differs. With
--freeze, as a release is made, the contracts become `protos/released.binpb`, with which `buf breaking` compares from
then on.
"""

import filecmp
import json
import os
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import status_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
IMAGE = ROOT / "build" / "protos.binpb"
RELEASED = PROTOS / "released.binpb"


def generate(target: Path) -> list[Path]:
    """Write the generated modules below `target`; return their paths relative to it."""
    sources = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
    services = [s for s in sources if "service " in (PROTOS / s).read_text()]
    googleapis = Path(status_pb2.__file__).parents[2]  # googleapis-common-protos ships its .proto files
    includes = [f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}", f"-I{googleapis}"]
    IMAGE.parent.mkdir(exist_ok=True)
    run(*includes, f"--python_out={target}", f"--mypy_out=quiet:{target}", *sources)
    run(*includes, f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *services)
    run(*includes, f"--descriptor_set_out={IMAGE}", "--include_imports", "--include_source_info", *sources)
    if "--freeze" in sys.argv:
        run(*includes, f"--descriptor_set_out={RELEASED}", "--include_imports", *sources)
    return [p.relative_to(target) for p in sorted(target.rglob("*_pb2*.py*"))]


def openapi() -> tuple[Path, str]:
    """The file of the OpenAPI document, and what belongs in it. The modules in the tree must be up to date."""
    from gateway.openapi import FILE, build

    document = build(FileDescriptorSet.FromString(IMAGE.read_bytes()))
    return FILE, json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def run(*arguments: str) -> None:
    if protoc.main(["protoc", *arguments]) != 0:
        sys.exit("protoc failed")


def main() -> None:
    # protoc looks for its plug-ins on PATH, and nobody need have activated the environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        written = generate(scratch)
        committed = {p.relative_to(ROOT) for p in (ROOT / "sis").rglob("*_pb2*.py*") if "__pycache__" not in p.parts}
        if "--check" in sys.argv:
            stale = [p for p in written if not (ROOT / p).exists() or not filecmp.cmp(scratch / p, ROOT / p, False)]
            stale += sorted(committed - set(written))
            if stale:
                sys.exit("generated code is not up to date, run `make generate`: " + ", ".join(map(str, stale)))
            document, text = openapi()
            if not document.exists() or document.read_text(encoding="utf-8") != text:
                sys.exit("gateway/openapi.json is not up to date, run `make generate`")
            return
        for path in committed - set(written):
            (ROOT / path).unlink()
        for path in written:
            destination = ROOT / path
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes((scratch / path).read_bytes())
            for package in destination.relative_to(ROOT).parents:
                if package != Path():
                    (ROOT / package / "__init__.py").touch()
    document, text = openapi()
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
