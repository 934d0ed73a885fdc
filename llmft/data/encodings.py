"""Make sure that a text file is in the encoding that the task names, before any row is read."""

import codecs
import contextlib
from pathlib import Path

from llmft.errors import UserError

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BLOCK = 1 << 20


def check_encoding(path: Path, encoding: str) -> str:
    """Return the codec to read a text file with; a byte order mark of UTF-8 is skipped.

    Raises:
        UserError: If the file is in another encoding: with the line, and the likely one.
        OSError: If it cannot be read.
    """
    wanted = codecs.lookup(encoding).name
    fault = _find_fault(path, wanted)
    if fault is not None:
        line, found = fault
        likely = guess_encoding(path)
        if codecs.lookup(likely).name == wanted:
            raise UserError(
                f"{path}:{line}: not {encoding} ({found}), though the rest is; mend the line"
            )
        raise UserError(
            f"{path}:{line}: not {encoding} ({found}); the file is likely {likely}: say "
            f"`encoding: {likely}` at this source, or convert it with "
            f"`iconv -f {likely} -t utf-8`"
        )
    # Any bytes pass for Latin-1, but text in it hardly ever happens to be valid UTF-8.
    if wanted != "utf-8" and len("é".encode(wanted, "replace")) == 1 and _holds_utf8(path):
        raise UserError(
            f"{path}: every letter beyond ASCII in it is valid UTF-8, so it is hardly {encoding}; "
            "say `encoding: utf-8` at this source"
        )
    return "utf-8-sig" if wanted == "utf-8" else wanted


def guess_encoding(path: Path) -> str:
    """Return the likely encoding of a file that is not in the one that was named."""
    data = path.read_bytes()
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return encoding
    if b"\0" in data[:2]:  # the first character is ASCII in two bytes
        return "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    text = data.decode("utf-8", "replace")
    num_beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    # One broken byte does not make a long UTF-8 file Latin-1; there, hardly a letter is valid.
    if 2 * text.count("\ufffd") <= num_beyond_ascii:
        return "utf-8"
    # Between 0x80 and 0x9f Windows has quotes and dashes, Latin-1 control characters.
    if any(0x80 <= byte <= 0x9F for byte in data):
        with contextlib.suppress(UnicodeDecodeError):
            data.decode("cp1252")
            return "cp1252"
    return "latin-1"


def _find_fault(path: Path, encoding: str) -> tuple[int, str] | None:
    """Return line and description of the first bytes that cannot be decoded."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                line += _decode_start(error).count("\n")
                return line, f"byte {error.object[error.start]:#04x}, {error.reason}"
            except UnicodeError as error:  # such as UTF-16 without a byte order mark
                return line, str(error)
            if not block:
                return None


def _decode_start(error: UnicodeDecodeError) -> str:
    return error.object[: error.start].decode(error.encoding, "ignore")


def _holds_utf8(path: Path) -> bool:
    """Return whether a file holds letters beyond ASCII, and all of them are valid UTF-8."""
    return _find_fault(path, "utf-8") is None and _find_fault(path, "ascii") is not None
