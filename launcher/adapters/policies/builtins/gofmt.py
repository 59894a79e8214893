"""
What Go's ``fmt.Sprintf`` makes of the operands that OPA hands it.

Those are integers, floats and strings only; everything else comes as the text of
its notation.  No library for Python is exact here (opa-py-wasm's falls back to
``%`` of Python, rego-cpp's knows half of the verbs), and a message of ``deny`` that
differs from OPA's is a test that fails for our user.
"""

from __future__ import annotations

import json
import re
import struct

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from launcher.adapters.policies.values import Huge, Key, Set, Value, parsed


_LARGEST = 1_000_000
"""Go ignores larger widths and precisions, too."""
_INT64 = 1 << 63
_BIG = "*big.Int"

_DIRECTIVE = re.compile(
    r"%(?P<flags>[-+# 0]*)(?:\[(?P<index>\d*)\])?(?P<width>\d+|\*)?"
    r"(?:\.(?P<precision>\d+|\*)?)?(?:\[(?P<late>\d*)\])?(?P<verb>.)?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    flags: str = ""
    width: int | None = None
    precision: int | None = None

    def padded(self, text: str, *, zeros: bool = False, numeric: bool = False) -> str:
        if self.width is None:
            return text
        if "-" in self.flags:
            return text.ljust(self.width)
        if zeros and "0" in self.flags:
            sign = text[:1] if numeric and text[:1] in "+- " else ""
            return sign + text[len(sign) :].rjust(self.width - len(sign), "0")
        return text.rjust(self.width)

    def signed(self, text: str) -> str:
        if text.startswith("-"):
            return text
        return ("+" if "+" in self.flags else " " if " " in self.flags else "") + text


def sprintf(
    template: str,
    operands: Sequence[Value],
    watch: Callable[[str], object] = len,
) -> str:
    """Format *operands* as OPA does; *watch* is shown what each directive becomes."""
    printer = _Printer(list(map(_operand, operands)))

    def directive(found: re.Match[str]) -> str:
        text = printer.directive(found)
        watch(text)
        return text

    text = _DIRECTIVE.sub(directive, template)
    return text + printer.unused()


class _Printer:
    """Goes through operands as directives ask for them."""

    def __init__(self, values: list[int | float | str]) -> None:
        self._values = values
        self._next = 0
        self._reordered = False

    def directive(self, found: re.Match[str]) -> str:
        """Return what *found* stands for."""
        complaints: list[str] = []
        in_range = all([self._jump(found["index"]), self._jump(found["late"])])
        width = self._measure(found["width"], "WIDTH", complaints)
        precision = self._measure(found["precision"], "PREC", complaints)
        if found["precision"] is None and "." in found.group()[:-1]:
            precision = 0
        flags = found["flags"]
        if width is not None and width < 0:
            flags, width = flags + "-", -width
        shape = _Format(flags=flags, width=width, precision=precision)
        return "".join(complaints) + self._verb(found["verb"], shape, in_range)

    def unused(self) -> str:
        """Return the complaint about operands that nothing asked for."""
        left = self._values[self._next :]
        if self._reordered or not left:
            return ""
        extra = [f"{_type(each)}={_one('v', each, _Format())}" for each in left]
        return f"%!(EXTRA {', '.join(extra)})"

    def _jump(self, index: str | None) -> bool:
        if index is None:
            return True
        self._reordered = True
        number = int(index or 0)
        if not 1 <= number <= len(self._values):
            return False
        self._next = number - 1
        return True

    def _measure(
        self, text: str | None, name: str, complaints: list[str]
    ) -> int | None:
        if text != "*":
            return min(int(text), _LARGEST) if text else None
        value = self._values[self._next] if self._next < len(self._values) else None
        self._next += 1
        if isinstance(value, int) and abs(value) <= _LARGEST:
            return value
        complaints.append(f"%!(BAD{name})")
        return None

    def _verb(self, verb: str | None, shape: _Format, in_range: bool) -> str:
        if verb is None:
            return "%!(NOVERB)"
        if verb == "%":
            return "%"
        if not in_range:
            return f"%!{verb}(BADINDEX)"
        if self._next >= len(self._values):
            return f"%!{verb}(MISSING)"
        self._next += 1
        value = self._values[self._next - 1]
        if verb == "v":
            # Here the two flags mean another notation, not signs and prefixes.
            if "#" in shape.flags and isinstance(value, str):
                verb = "q"
            if _type(value) != _BIG:
                shape = replace(shape, flags=re.sub("[+#]", "", shape.flags))
        return _one(verb, value, shape)


def _operand(value: Value) -> int | float | str:
    match value:
        case Huge():
            return value.text
        case bool():
            return text(value)
        case int() | float() | str():
            return value
        case _:
            return text(value)


def _type(value: Value) -> str:
    if isinstance(value, int):
        return "int64" if -_INT64 <= value < _INT64 else _BIG
    return "float64" if isinstance(value, float) else "string"


def _one(verb: str, value: Value, shape: _Format) -> str:
    formatted: str | None = None
    if verb == "T":
        return shape.padded(_type(value)[: shape.precision])
    if isinstance(value, int):
        formatted = _integer(verb, value, shape)
    elif isinstance(value, float):
        formatted = _float(verb, value, shape)
    else:
        formatted = _string(verb, value, shape)
    if formatted is None:
        if _type(value) == _BIG:
            return f"%!{verb}(big.Int={value})"
        return f"%!{verb}({_type(value)}={_one('v', value, shape)})"
    return formatted


_BASES = {"v": "d", "d": "d", "b": "b", "o": "o", "O": "o", "x": "x", "X": "X"}
_PREFIXES = {"b": "0b", "o": "0", "x": "0x", "X": "0X"}


def _integer(verb: str, value: int, shape: _Format) -> str | None:
    big = _type(value) == _BIG
    if big and verb == "s":
        verb = "d"
    elif verb in ("c", "q", "U") and not big:
        return _rune(verb, value, shape)
    if verb not in _BASES:
        return None
    digits = format(abs(value), _BASES[verb])
    if shape.precision is not None:
        if shape.precision == 0 and value == 0:
            return shape.padded("")
        digits = digits.rjust(shape.precision, "0")
    prefix = "0o" if verb == "O" else ""
    if "#" in shape.flags:
        prefix = _PREFIXES.get(verb, prefix)
        if verb == "o" and digits.startswith("0"):
            prefix = ""
    sign = shape.signed("-" if value < 0 else "")
    if shape.precision is None and "0" in shape.flags and "-" not in shape.flags:
        # Go counts the sign among the digits, and the prefix not at all.
        digits = digits.rjust((shape.width or 0) - len(sign), "0")
    return shape.padded(sign + prefix + digits)


def _rune(verb: str, value: int, shape: _Format) -> str:
    letter = chr(value) if 0 <= value < 0x110000 else "\ufffd"
    if 0xD800 <= value < 0xE000:
        letter = "\ufffd"
    if verb == "c":
        return shape.padded(letter)
    if verb == "q":
        inner = (
            quoted(letter, ascii_only="+" in shape.flags)[1:-1]
            .replace('\\"', '"')
            .replace("'", "\\'")
        )
        return shape.padded(f"'{inner}'")
    # A negative number has no character, so its 64 bits are shown.
    text_ = f"U+{value % (_INT64 * 2):0{max(4, shape.precision or 0)}X}"
    if "#" in shape.flags and letter.isprintable():
        text_ += f" '{letter}'"
    return shape.padded(text_)


def _float(verb: str, value: float, shape: _Format) -> str | None:
    precision = shape.precision
    if verb in ("v", "g", "G"):
        if precision is None:
            written = shortest(value, _EXPONENT_FROM)
            if "#" in shape.flags and len(re.sub("e.*|[^0-9]|^0+", "", written)) < 6:
                written = f"{value:#.6g}"
            elif "#" in shape.flags and "." not in written:
                written += "."
        else:
            written = f"%{'#' if '#' in shape.flags else ''}.{precision}g" % value
        written = written.upper() if verb == "G" else written
    elif verb in ("e", "E", "f", "F"):
        number = 6 if precision is None else precision
        written = f"%.{number}{verb}" % value
    elif verb == "b":
        written = _binary(value)
    elif verb in ("x", "X") and precision is None:
        mantissa, _, exponent = value.hex().partition("p")
        whole, _, fraction = mantissa.partition(".")
        fraction = fraction.rstrip("0")
        tail = f".{fraction}" if fraction else ""
        written = f"{whole}{tail}p{int(exponent):+03d}"
        written = written.upper() if verb == "X" else written
    else:
        return None
    return shape.padded(shape.signed(written), zeros=True, numeric=True)


def _binary(value: float) -> str:
    """Mantissa and power of two, as they are in memory."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", value))
    sign = "-" if bits >> 63 else ""
    power, mantissa = bits >> 52 & 0x7FF, bits & ((1 << 52) - 1)
    if power:
        mantissa |= 1 << 52
    return f"{sign}{mantissa}p{max(power, 1) - 1075:+d}"


_EXPONENT_FROM = 6
"""The power of ten from which ``%v`` writes an exponent; JSON does from 21."""


def shortest(value: float, exponent_from: int = 21) -> str:
    """As few digits as tell *value* apart."""
    mantissa, _, exponent = f"{value!r}".partition("e")
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0)
    point -= len(whole + fraction) - len((whole + fraction).lstrip("0"))
    digits = digits.rstrip("0")
    if not digits:
        return sign + "0"
    power = point - 1
    if power < -4 or power >= exponent_from:
        tail = f".{digits[1:]}" if digits[1:] else ""
        return f"{sign}{digits[0]}{tail}e{'-' if power < 0 else '+'}{abs(power):02d}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    padded = digits.ljust(point, "0")
    return f"{sign}{padded[:point]}" + (f".{padded[point:]}" if padded[point:] else "")


def _string(verb: str, value: str, shape: _Format) -> str | None:
    match verb:
        case "s" | "v":
            return shape.padded(value[: shape.precision], zeros=True)
        case "q":
            cut = value[: shape.precision]
            if "#" in shape.flags and _raw(cut):
                return shape.padded(f"`{cut}`")
            return shape.padded(quoted(cut, ascii_only="+" in shape.flags))
        case "x" | "X":
            data = value.encode()[: shape.precision]
            between = " " if " " in shape.flags else ""
            written = data.hex(between) if between else data.hex()
            if "#" in shape.flags and data:
                parts = written.split(between) if between else [written]
                written = between.join(f"0x{part}" for part in parts)
            return shape.padded(written.upper() if verb == "X" else written)
        case _:
            return None


_ESCAPES = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
    "\v": "\\v", "\\": "\\\\", '"': '\\"',
}  # fmt: skip


def _raw(value: str) -> bool:
    """Whether Go can write *value* between backquotes."""
    return all(x == "\t" or (x >= " " and x not in "`\x7f\ufeff") for x in value)


def quoted(value: str, *, ascii_only: bool = False) -> str:
    """Like Go's ``strconv.Quote``."""
    return '"' + "".join(_escaped(letter, ascii_only) for letter in value) + '"'


def _escaped(letter: str, ascii_only: bool) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if letter.isprintable() and (letter.isascii() or not ascii_only):
        return letter
    code = ord(letter)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def text(value: Value) -> str:
    """Notation of *value* as OPA shows it to people: sets and keys in order."""
    match value:
        case None | bool():
            shown = json.dumps(value)
        case Huge():
            shown = value.text
        case float():
            shown = shortest(value)
        case int():
            shown = str(value)
        case str():
            shown = quoted(value)
        case Set():
            listed = ", ".join(dict.fromkeys(map(text, sorted(value, key=order))))
            shown = f"{{{listed}}}" if value else "set()"
        case list():
            shown = f"[{', '.join(map(text, value))}]"
        case Key():
            shown = text(parsed(value.text))
        case _:
            pairs = sorted(value.items(), key=lambda pair: order(pair[0]))
            shown = ", ".join(f"{text(key)}: {text(each)}" for key, each in pairs)
            shown = f"{{{shown}}}"
    return shown


def order(value: Value) -> tuple[int, Value]:
    """Sort key with which values come as OPA sorts them."""
    key: tuple[int, Value]
    match value:
        case None:
            key = 0, 0
        case bool():
            key = 1, value
        case int() | float():
            key = 2, value
        case str():
            key = 3, value
        case Set():
            key = 6, sorted(map(order, value))
        case list():
            key = 4, [order(each) for each in value]
        case Key():
            key = order(parsed(value.text))
        case _:
            pairs = sorted((order(name), order(each)) for name, each in value.items())
            key = 5, ([name for name, _ in pairs], [each for _, each in pairs])
    return key
