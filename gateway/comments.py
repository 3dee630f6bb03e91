"""What the contracts say in their comments, from a descriptor image with source info."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet

_Path = tuple[int, ...]
_File, _Message, _Enum = FileDescriptorProto, DescriptorProto, EnumDescriptorProto


def read(image: FileDescriptorSet) -> Mapping[str, str]:
    """The comment before each declaration, by its full name; a value of an enum is "package.Enum.VALUE". Paragraphs
    are apart by an empty line, and are one line each unless they are lists."""
    found = {}
    for file in image.file:
        names = dict(_declarations(file))
        for location in file.source_code_info.location:
            name = names.get(tuple(location.path))
            if name is not None and location.leading_comments:
                found[name] = _text(location.leading_comments)
    return found


def _declarations(file: FileDescriptorProto) -> Iterator[tuple[_Path, str]]:
    """Path (as in SourceCodeInfo) and full name of everything in a file."""
    package = f"{file.package}."
    for index, service in enumerate(file.service):
        path = (_File.SERVICE_FIELD_NUMBER, index)
        yield path, package + service.name
        for number, method in enumerate(service.method):
            yield (*path, 2, number), f"{package}{service.name}.{method.name}"
    for index, message in enumerate(file.message_type):
        yield from _of_message((_File.MESSAGE_TYPE_FIELD_NUMBER, index), package, message)
    for index, enum in enumerate(file.enum_type):
        yield from _of_enum((_File.ENUM_TYPE_FIELD_NUMBER, index), package, enum)


def _of_message(path: _Path, scope: str, message: DescriptorProto) -> Iterator[tuple[_Path, str]]:
    name = scope + message.name
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, _Message.FIELD_FIELD_NUMBER, index), f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        yield from _of_message((*path, _Message.NESTED_TYPE_FIELD_NUMBER, index), f"{name}.", nested)
    for index, enum in enumerate(message.enum_type):
        yield from _of_enum((*path, _Message.ENUM_TYPE_FIELD_NUMBER, index), f"{name}.", enum)


def _of_enum(path: _Path, scope: str, enum: EnumDescriptorProto) -> Iterator[tuple[_Path, str]]:
    name = scope + enum.name
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, _Enum.VALUE_FIELD_NUMBER, index), f"{name}.{value.name}"


def _text(comment: str) -> str:
    paragraphs: list[list[str]] = [[]]
    for line in comment.splitlines():
        text = line.strip()
        if not text:
            paragraphs.append([])
        elif paragraphs[-1] and not text.startswith("- "):
            paragraphs[-1][-1] += f" {text}"
        else:
            paragraphs[-1].append(text)
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)
