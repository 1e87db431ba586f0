"""Schema: JSON of ours is checked as it is read, by the types of the records that it becomes.

A form is a frozen dataclass whose annotations say what each field may be: types are taken as they are (no
`true` for 1, no `"5"` for 5), numbers are finite, and `annotated_types` bounds them. Pydantic does the work:
it comes with Typer, says where a value is wrong, stops at a depth of its own, and reads an expert's
description as fast as `json` alone.
"""

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge, Le, MinLen

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.names import lower_first

T = TypeVar("T")

Text = Annotated[str, MinLen(1)]
Count = Annotated[int, Ge(0), Le(2**53)]
Size = Annotated[int, Ge(1), Le(2**53)]


class Form:
    """What every form inherits: how strictly its fields are read."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"strict": True, "allow_inf_nan": False}


@dataclass(frozen=True)
class FileForm(Form):
    """A form of a whole file, which has the number of our format.

    Attributes:
        format: The number.
    """

    format: Literal[1]


def read(where: storage.PathLike, form: type[T], *, what: str, fix: str, most: int = storage.MOST_TEXT) -> T:
    """Reads a JSON file as a record of that form.

    Args:
        where: The file.
        form: A subclass of `FileForm`.
        what: What the file is, in errors.
        fix: What errors advise.
        most: How many bytes it may have.

    Raises:
        UserError: If it is absent, no plain file or too large, or if any value in it is none of the form.
    """
    content = storage.read_content(where, what=what, most=most)
    return parse(content, form, what=f"{lower_first(what)} at {os.fspath(where)!r}", fix=fix)


def parse(content: bytes, form: Any, *, what: str, fix: str) -> Any:
    """Returns the record of that form, or of any type that Pydantic knows, that JSON stands for.

    Raises:
        UserError: If it is no JSON, or if any value in it is none of the form; the message says which.
    """
    from pydantic import ValidationError

    try:
        return _adapter(form).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "/".join(map(str, first["loc"]))
        wrong = f"a file whose `{place:.200}` is wrong" if place else "a file that cannot be read"
        raise UserError(f"Expected {what}, got {wrong} ({first['msg']:.200}). Fix: {fix}.") from None


def build_record(value: Any, form: type[T]) -> T:
    """Returns the record of that form that values read from JSON stand for.

    Raises:
        ValueError: If any value is none of the form.
    """
    return _adapter(form).validate_json(json.dumps(value), strict=True)


@functools.cache
def _adapter(form: Any) -> Any:
    from pydantic import TypeAdapter  # a tenth of a second, which `elm --help` need not take

    return TypeAdapter(form)
