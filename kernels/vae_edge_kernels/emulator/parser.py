"""PTX text to a module: functions with parameters, registers, labels and instructions.

Only the syntax is read here: opcodes and operands are not judged. A directive or declaration that is not known is
refused: the error names the text and its line.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from vae_edge_kernels.emulator.errors import PtxError

# Bits of a register by its declared type; a predicate has one.
REGISTER_BITS = {"pred": 1} | {
    f"{kind}{bits}": bits for kind in "busf" for bits in (16, 32, 64) if (kind, bits) != ("f", 16)
}
IGNORED = re.compile(r"\.(version|address_size|pragma|file|noreturn)\b")
TOKEN = re.compile(r"%?[A-Za-z_$][\w$]*(?:\.[xyz]\b)?")
LABEL = re.compile(r"^([\w$]+):\s*")
FUNCTION = re.compile(
    r"(?:\.visible\s+)?\.(?P<kind>entry|func)\s*(?:\((?P<results>[^)]*)\)\s*)?(?P<name>[\w$]+)\s*\((?P<params>[^)]*)\)\s*"
    r"(?:\.reqntid\s+(?P<threads>\d+)(?:,\s*1,\s*1)?\s*)?(?:\.maxnreg\s+\d+\s*)?(?:\.minnctapersm\s+\d+\s*)?$",
    re.DOTALL,
)
PARAM = re.compile(r"\.param\s+\.(\w+)(?:\s+\.ptr)?(?:\s+\.global)?(?:\s+\.align\s+\d+)?\s+([\w$]+)$")
SHARED = re.compile(r"\.extern\s+\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[\]$")
LOCAL = re.compile(r"\.local\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]$")
CONSTANT = re.compile(r"\.global\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]\s*=\s*\{([\d,\s]*)\}$")
INLINE = re.compile(r"// begin inline asm.*?// end inline asm", re.DOTALL)
LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+\d+")
FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)


@dataclass(frozen=True)
class Param:
    """A parameter: its name and its type, "b64", "u32", …"""

    name: str
    type: str


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: with all modifiers, as written: "add.rn.f32".
        operands: each as written, without spaces around; a vector keeps its braces.
        guard: name of the predicate in front, or None.
        negated: whether the guard is `@!`.
        line: of the PTX text, from 1.
        source: "file.py:line" of the last `.loc`, or "".
        text: the statement, for messages.
    """

    opcode: str
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    line: int
    source: str
    text: str


@dataclass
class Function:
    """An entry or a function.

    Attributes:
        registers: declared name to bits; names of an inner scope carry its number.
        instructions: in order.
        labels: name to the index of the instruction that follows.
        threads: of `.reqntid`, or None.
        locals: variables in local memory, name to (bytes, alignment).
    """

    name: str
    is_entry: bool
    params: tuple[Param, ...]
    results: tuple[Param, ...]
    threads: int | None
    registers: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    locals: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass
class Module:
    """A PTX text.

    Attributes:
        target: "sm_87", as `.target` says.
        functions: by name; declarations without a body are left out.
        shared: name of the dynamic shared memory, or None.
        constants: contents of the variables in global memory, by name.
    """

    target: str
    functions: dict[str, Function]
    shared: str | None
    constants: dict[str, bytes]

    @property
    def entry(self) -> Function:
        """The only entry.

        Raises:
            PtxError: if there is none, or more than one.
        """
        entries = [function for function in self.functions.values() if function.is_entry]
        if len(entries) != 1:
            raise PtxError(f"The module has {len(entries)} entries, where one is expected.")
        return entries[0]


def parse(text: str) -> Module:
    """PTX text to a module.

    Raises:
        PtxError: at a directive, declaration or statement that is not known.
    """
    files = {number: path.rsplit("/", 1)[-1] for number, path in FILE.findall(text)}
    code = re.sub(r"^\s*\.section\s+\.debug.*", "", text, flags=re.DOTALL | re.MULTILINE)
    # LLVM counts the lines of inline assembly on from the source line that it stands at.
    code = INLINE.sub(lambda block: re.sub(r"(?m)^\s*\.loc\b.*$", "", block.group(0)), code)
    code = re.sub(r"//[^\n]*", "", code)
    parser = _Parser(files)
    for line, statement in _statements(code):
        parser.take(line, statement)
    return parser.module()


def split_operands(text: str) -> tuple[str, ...]:
    """ "{a, b}, [c+4], 1" to its three parts."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return (*parts, last) if last else tuple(parts)


def _statements(code: str) -> Iterator[tuple[int, str]]:
    """(line, statement): up to a semicolon, or a brace of a block, or a directive of one line."""
    line, start_line, pending = 1, 1, ""
    in_vector = False
    for row in code.split("\n"):
        stripped = row.strip()
        if not pending.strip() and re.match(r"\.(loc|file|version|target|address_size)\b", stripped):
            yield line, stripped
            line += 1
            continue
        for character in row:
            if not pending.strip():
                pending, start_line = "", line
            if character == ";" and not in_vector:
                yield start_line, pending.strip()
                pending = ""
            elif character == "{":
                before = pending.strip()
                # A brace opens a block at a statement's start or after a function's head; else it is a vector.
                if not before or (before.startswith((".visible", ".entry", ".func")) and "=" not in before):
                    if before:
                        yield start_line, before
                    yield line, "{"
                    pending = ""
                else:
                    in_vector = True
                    pending += character
            elif character == "}":
                if in_vector:
                    in_vector = False
                    pending += character
                else:
                    if pending.strip():
                        raise PtxError(f"Line {start_line}: the statement {pending.strip()!r} has no end.")
                    yield line, "}"
                    pending = ""
            else:
                pending += character
        label = LABEL.match(pending.strip())
        if label and label.end() == len(pending.strip()) and not in_vector:
            yield start_line, pending.strip()
            pending = ""
        pending += "\n" if pending else ""
        line += 1
    if pending.strip():
        raise PtxError(f"Line {start_line}: the statement {pending.strip()[:80]!r} has no end.")


class _Parser:
    """The state of reading: the function, its scopes of register names, and the source line."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self.target = ""
        self.shared: str | None = None
        self.constants: dict[str, bytes] = {}
        self.functions: dict[str, Function] = {}
        self.head: Function | None = None  # whose body has not begun
        self.function: Function | None = None
        self.scopes: list[dict[str, str]] = []
        self.labels: list[tuple[int, dict[str, str]]] = []  # of each scope: its first instruction, and its own labels
        self.serial = itertools.count()  # makes the names of inner scopes unique
        self.source = ""

    def module(self) -> Module:
        if self.function is not None or not self.target:
            raise PtxError("The text ends within a function, or names no target.")
        return Module(self.target, self.functions, self.shared, self.constants)

    def take(self, line: int, statement: str) -> None:
        if not statement:
            return
        if statement == "{":
            self._open(line)
        elif statement == "}":
            self._close(line)
        elif LOC.match(statement):
            self._locate(line, statement)
        elif self.function is None:
            self._declare(line, statement)
        else:
            self._body(line, statement)

    def _open(self, line: int) -> None:
        if self.function is None:
            if self.head is None:
                raise PtxError(f"Line {line}: a block outside a function.")
            self.function, self.head = self.head, None
            self.scopes, self.labels = [{}], [(0, {})]
        else:
            self.scopes.append({})
            self.labels.append((len(self.function.instructions), {}))

    def _close(self, line: int) -> None:
        if self.function is None:
            raise PtxError(f"Line {line}: a brace closes nothing.")
        self.scopes.pop()
        start, labels = self.labels.pop()
        if labels:  # a jump may stand before its label
            for place in range(start, len(self.function.instructions)):
                jump = self.function.instructions[place]
                if jump.opcode.startswith("bra"):
                    targets = tuple(labels.get(target, target) for target in jump.operands)
                    self.function.instructions[place] = replace(jump, operands=targets)
        if not self.scopes:
            self.functions[self.function.name] = self.function
            self.function = None

    def _locate(self, line: int, statement: str) -> None:
        match = LOC.match(statement)
        if match is None:
            raise PtxError(f"Line {line}: {statement!r} is no source line.")
        self.source = f"{self.files.get(match.group(1), '?')}:{match.group(2)}"

    def _declare(self, line: int, statement: str) -> None:
        """Outside functions."""
        if IGNORED.match(statement):
            return
        if statement.startswith(".target"):
            self.target = statement.split()[1].rstrip(",")
            return
        flat = " ".join(statement.split())
        shared = SHARED.match(flat)
        if shared:
            self.shared = shared.group(2)
            return
        constant = CONSTANT.match(flat)
        if constant:
            values = bytes(int(value) for value in constant.group(3).split(",") if value.strip())
            self.constants[constant.group(1)] = values.ljust(int(constant.group(2)), b"\0")
            return
        match = FUNCTION.match(flat)
        if match is None:
            raise PtxError(f"Line {line}: the declaration {flat[:120]!r} is not known.")
        threads = match.group("threads")
        self.head = Function(
            name=match.group("name"),
            is_entry=match.group("kind") == "entry",
            params=self._params(line, match.group("params")),
            results=self._params(line, match.group("results") or ""),
            threads=None if threads is None else int(threads),
        )

    def _params(self, line: int, text: str) -> tuple[Param, ...]:
        params = []
        for part in split_operands(text):
            match = PARAM.match(part)
            if match is None:
                raise PtxError(f"Line {line}: the parameter {part!r} is not known.")
            params.append(Param(match.group(2), match.group(1)))
        return tuple(params)

    def _body(self, line: int, statement: str) -> None:
        assert self.function is not None
        label = LABEL.match(statement)
        if label:
            self._label(line, label.group(1))
            self.take(line, statement[label.end() :].strip())
        elif statement.startswith(".reg"):
            self._registers(line, statement)
        elif statement.startswith(".param") and PARAM.match(" ".join(statement.split())):
            return  # the place of an argument or result of a call; `call` names it
        elif IGNORED.match(statement):
            return
        elif LOCAL.match(" ".join(statement.split())):
            self._local(line, " ".join(statement.split()))
        elif statement.startswith("."):
            raise PtxError(f"Line {line}: the directive {statement!r} is not known.")
        else:
            self.function.instructions.append(self._instruction(line, statement))

    def _label(self, line: int, name: str) -> None:
        """A label; those of an inner scope get the scope's number."""
        assert self.function is not None
        own = self.labels[-1][1]
        unique = name if len(self.scopes) == 1 else f"{name}@{next(self.serial)}"
        if unique in self.function.labels or name in own:
            raise PtxError(f"Line {line}: the label {name} stands twice.")
        own[name] = unique
        self.function.labels[unique] = len(self.function.instructions)

    def _local(self, line: int, statement: str) -> None:
        match = LOCAL.match(statement)
        assert self.function is not None and match is not None
        if len(self.scopes) > 1:
            raise PtxError(f"Line {line}: the variable {match.group(2)} of an inner scope is not known.")
        self.function.locals[match.group(2)] = int(match.group(3)), int(match.group(1))

    def _registers(self, line: int, statement: str) -> None:
        assert self.function is not None
        match = re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.DOTALL)
        bits = REGISTER_BITS.get(match.group(1)) if match else None
        if match is None or bits is None:
            raise PtxError(f"Line {line}: the registers of {statement!r} are not known.")
        for declared in split_operands(match.group(2)):
            family = re.fullmatch(r"(%?[\w$]+)<(\d+)>", declared)
            names = [f"{family.group(1)}{i}" for i in range(int(family.group(2)))] if family else [declared]
            for name in names:
                unique = name if len(self.scopes) == 1 else f"{name}@{next(self.serial)}"
                self.scopes[-1][name] = unique
                self.function.registers[unique] = bits

    def _resolve(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name

    def _instruction(self, line: int, statement: str) -> Instruction:
        text = " ".join(statement.split())
        match = re.match(r"(?:@(!?)(%?[\w$]+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?$", text)
        if match is None:
            raise PtxError(f"Line {line}: the statement {text!r} is not known.")
        negated, guard, opcode, rest = match.groups()
        operands = split_operands(rest or "")
        return Instruction(
            opcode=opcode,
            operands=tuple(TOKEN.sub(lambda token: self._resolve(token.group(0)), part) for part in operands),
            guard=None if guard is None else self._resolve(guard),
            negated=bool(negated),
            line=line,
            source=self.source,
            text=text if len(text) < 200 else f"{text[:200]}…",
        )
