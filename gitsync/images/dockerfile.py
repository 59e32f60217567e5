"""Reads Dockerfiles far enough to know what a build needs and to name mistakes by line. Pure.

What is read: parser directives, continuation lines with comments in them, heredocs, global ``ARG``, stages, and every
place that names another stage or an image (``FROM``, ``COPY --from``, ``RUN --mount=from=``). What a ``RUN`` does is
none of our business. The rules are those of BuildKit's own parser.
"""

import json
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from gitsync.errors import Invalid
from gitsync.model import Origin

_KNOWN = re.compile(
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|RUN|SHELL|STOPSIGNAL|USER|VOLUME"
    "|WORKDIR"
)
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_WORD = re.compile(r"""(?:[^\s"']|"(?:\\.|[^"\\])*"|'[^']*')+""")
_HEREDOC = re.compile(r"""\d*<<(-?)(["']?)([^<"'\s]+)\2""")
_VARIABLE = re.compile(r"\\(.)|\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-+?])((?:[^{}]|\$\{[^{}]*\})*))?\}|(\{))")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")
# The stock frontend, which BuildKit contains; "labs" and foreign ones are programs of their own.
STOCK_FRONTEND = re.compile(r"(?:docker\.io/)?docker/dockerfile(?::1(?:\.[0-9.]+)?)?(?:@sha256:[0-9a-f]{64})?")

#: What a feature asks of a builder, for messages.
HEREDOC, LINK, FRONTEND = "a heredoc", "--link", "# syntax="


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: ``line``..``end`` in the file (from 1), ``text`` joined to one line without heredoc bodies."""

    line: int
    end: int
    name: str
    flags: tuple[tuple[str, str], ...]
    words: tuple[str, ...]
    text: str

    def flag(self, name: str) -> list[str]:
        return [value for key, value in self.flags if key == name]


@dataclass(frozen=True, slots=True)
class Use:
    """A place that names a stage or an image. ``written`` is the token in the file, ``name`` with ARGs filled in."""

    line: int
    end: int
    written: str
    name: str
    platform: str = ""  # of FROM --platform=


@dataclass(frozen=True, slots=True)
class Stage:
    name: str  # "" when it has none
    base: Use
    others: tuple[Use, ...]  # COPY --from and RUN --mount=from


@dataclass(frozen=True, slots=True)
class Feature:
    name: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    text: str
    origin: Origin
    instructions: tuple[Instruction, ...]
    stages: tuple[Stage, ...]
    features: tuple[Feature, ...]
    syntax: str = ""
    variants: tuple["Dockerfile", ...] = ()  # as it reads for the other platforms of one build

    @property
    def output_format(self) -> str:
        """``docker`` if an instruction is used that the OCI format drops without a word, else ``oci``."""
        lost = {"SHELL", "HEALTHCHECK", "ONBUILD"}
        return "docker" if any(instruction.name in lost for instruction in self.instructions) else "oci"

    def bases(self, target: str = "") -> tuple[Use, ...]:
        """External images that building ``target`` ("" is the last stage) needs, one per name, in file order."""
        found: dict[tuple[str, str], Use] = {}
        for use in self._external_uses(target):
            found.setdefault((use.name, use.platform), use)
        return tuple(found.values())

    def chooses_platform(self, target: str = "") -> bool:
        """Whether a FROM says for which machine ``target`` is, instead of who asks for the build."""
        index: int | None = self._target(target)
        while index is not None:
            base = self.stages[index].base
            if base.platform:
                return True
            index = self._stage(base, before=index)
        return False

    def pinned(self, target: str, references: Mapping[str, str]) -> str:
        """The text with each external image of ``target`` replaced by its pinned reference; lines stay where they are.

        A stock ``# syntax=`` line is blanked: it makes BuildKit pull a moving frontend that it already contains.
        """
        lines = self.text.split("\n")
        for use in self._external_uses(target):
            pin = references.get(use.name)
            if not pin:
                continue
            for number in range(use.line - 1, use.end):
                token = rf"(?<![^\s=,]){re.escape(use.written)}(?![^\s,])"
                changed = re.sub(token, lambda _, pin=pin: pin, lines[number], count=1)
                if changed != lines[number]:
                    lines[number] = changed
                    break
        if self.syntax and STOCK_FRONTEND.fullmatch(self.syntax):
            place = next(feature.line for feature in self.features if feature.name == FRONTEND)
            lines[place - 1] = "#"
        return "\n".join(lines)

    def at(self, line: int) -> Origin:
        return replace(self.origin, line=line, column=0, field="")

    def _external_uses(self, target: str) -> list[Use]:
        uses = [
            use
            for index in sorted(self._needed(target))
            for use in (self.stages[index].base, *self.stages[index].others)
            if self.is_external(use, index)
        ]
        for variant in self.variants:
            lines = {use.line for use in uses}
            uses += (use for use in variant._external_uses(target) if use.line not in lines)
        return sorted(uses, key=lambda use: use.line)

    def is_external(self, use: Use, index: int) -> bool:
        """Whether a use in the stage ``index`` means an image and not another stage."""
        return use.name != "scratch" and self._stage(use, before=index) is None

    def _needed(self, target: str) -> set[int]:
        todo = [self._target(target)]
        needed: set[int] = set()
        while todo:
            index = todo.pop()
            needed.add(index)
            for use in (self.stages[index].base, *self.stages[index].others):
                other = self._stage(use, before=index)
                if other is not None and other not in needed:
                    todo.append(other)
        return needed

    def _target(self, target: str) -> int:
        if not target:
            return len(self.stages) - 1
        for index, stage in enumerate(self.stages):
            if stage.name == target.lower() or str(index) == target:
                return index
        names = ", ".join(stage.name for stage in self.stages if stage.name) or "none has a name"
        raise Invalid(
            f"there is no stage “{target}” to build (stages: {names})",
            doing="reading the Dockerfile",
            origin=self.origin,
            hint="correct the image's target",
        )

    def _stage(self, use: Use, *, before: int) -> int | None:
        """The stage that a use means; FROM cannot name a stage by number."""
        for index in range(before - 1, -1, -1):
            if self.stages[index].name and self.stages[index].name == use.name.lower():
                return index
        if use.name.isdecimal() and use is not self.stages[before].base:
            return int(use.name)
        return None


def parse_for(data: bytes, platforms: Sequence[str], *, origin: Origin, args: Mapping[str, str]) -> Dockerfile:
    """Reads a Dockerfile that one build makes for all ``platforms``. ``Invalid`` also if a FROM names another image
    for each of them: one text with one pin in its place goes to the builder."""
    found = [parse(data, origin=origin, args=args, platform=each, built_on=platforms[0]) for each in platforms]
    for index in range(len(found[0].stages)):
        bases = [each.stages[index].base for each in found]
        names = list(dict.fromkeys(base.name for base in bases))
        if len(names) > 1 and any(each.is_external(base, index) for each, base in zip(found, bases, strict=True)):
            raise Invalid(
                f"“{bases[0].written}” is {' or '.join(names)}, depending on the platform",
                doing="reading the Dockerfile",
                origin=found[0].at(bases[0].line),
                hint="give each image a stage of its own (FROM … AS base-amd64), then FROM base-${TARGETARCH}",
            )
    return replace(found[0], variants=tuple(found[1:]))


def parse(
    data: bytes, *, origin: Origin, args: Mapping[str, str] | None = None, platform: str = "", built_on: str = ""
) -> Dockerfile:
    """Reads a Dockerfile with build ``args`` for a ``platform`` like ``linux/amd64``. ``Invalid`` names the line."""

    def fail(line: int, message: str, hint: str = "") -> NoReturn:
        place = replace(origin, line=line, column=0, field="")
        raise Invalid(message, doing="reading the Dockerfile", origin=place, hint=hint)

    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        fail(data[: error.start].count(b"\n") + 1, "it is not UTF-8 text")
    if "\0" in text:
        fail(text[: text.index("\0")].count("\n") + 1, "it contains a NUL byte, so it is no text")
    directives, escape = _directives(text, fail)
    instructions, features = _instructions(text, escape, fail)
    syntax, line = directives.get("syntax", ("", 0))
    if syntax:
        features.insert(0, Feature(FRONTEND, line))
    return Dockerfile(
        text=text,
        origin=origin,
        instructions=tuple(instructions),
        stages=tuple(_stages(instructions, _globals(args or {}, platform, built_on or platform), fail)),
        features=tuple(features),
        syntax=syntax,
    )


_Fail = Callable[..., NoReturn]


def _directives(text: str, fail: _Fail) -> tuple[dict[str, tuple[str, int]], str]:
    found: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        match = _DIRECTIVE.fullmatch(line.strip())
        if not match or match[1].lower() not in ("syntax", "escape", "check"):
            break
        if match[1].lower() in found:
            fail(number, f"the directive “{match[1]}” is there twice")
        found[match[1].lower()] = (match[2], number)
    escape, number = found.get("escape", ("\\", 0))
    if escape not in ("\\", "`"):
        fail(number, f"the escape character is \\ or `, not “{escape}”")
    return found, escape


def _instructions(text: str, escape: str, fail: _Fail) -> tuple[list[Instruction], list[Feature]]:
    continued = re.compile(rf"(?<!{re.escape(escape)}){re.escape(escape)}[ \t]*$")
    lines = text.split("\n")
    found: list[Instruction] = []
    features: list[Feature] = []
    i = 0
    while i < len(lines):
        start, joined = i, ""
        if not lines[i].strip() or lines[i].lstrip().startswith("#"):
            i += 1
            continue
        while i < len(lines):
            line = lines[i]
            i += 1
            if joined and (not line.strip() or line.lstrip().startswith("#")):
                continue  # blank lines and comments inside a continuation
            match = continued.search(line)
            joined += line[: match.start()] if match else line
            if not match:
                break
        instruction = _instruction(start + 1, joined.strip(), fail)
        for strip, name in _heredocs(instruction):
            features.append(Feature(HEREDOC, start + 1))
            opened = i
            while i < len(lines) and (lines[i].lstrip("\t") if strip else lines[i]) != name:
                i += 1
            if i == len(lines):
                fail(start + 1, f"the heredoc “{name}” is never ended", f"a line with only {name} must follow")
            i = max(i + 1, opened)
        if instruction.flag("link") and instruction.flag("link") != ["false"]:
            features.append(Feature(LINK, start + 1))
        found.append(replace(instruction, end=i))
    return found, features


def _instruction(line: int, text: str, fail: _Fail) -> Instruction:
    keyword, *tail = text.split(None, 1)
    name, rest = keyword.upper(), tail[0] if tail else ""
    if not _KNOWN.fullmatch(name):
        fail(line, f"unknown instruction “{keyword[:60]}”", "an instruction like RUN or COPY must begin the line")
    if not rest:
        fail(line, f"{name} needs an argument")
    flags: list[tuple[str, str]] = []
    if name in ("ADD", "COPY", "FROM", "RUN", "HEALTHCHECK"):
        while match := re.match(r"--([a-z][a-z-]*)(?:=(\S*))?(?:\s+|$)", rest):
            flags.append((match[1], match[2] or ""))
            rest = rest[match.end() :]
    return Instruction(line, line, name, tuple(flags), tuple(_words(rest)), " ".join((keyword, *tail)))


def _words(rest: str) -> list[str]:
    if rest.startswith("["):
        try:
            value = json.loads(rest)
        except ValueError:
            pass
        else:
            if isinstance(value, list) and all(isinstance(item, str) for item in value):  # pyright: ignore[reportUnknownVariableType]
                return [str(item) for item in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return _WORD.findall(rest)


def _heredocs(instruction: Instruction) -> list[tuple[bool, str]]:
    if instruction.name not in ("ADD", "COPY", "RUN"):
        return []
    matches = (_HEREDOC.fullmatch(word) for word in instruction.words)
    return [(bool(match[1]), match[3]) for match in matches if match]


def _globals(args: Mapping[str, str], platform: str, built_on: str) -> dict[str, str]:
    """What ``FROM`` may use without declaring it, and the build arguments."""
    known = dict(args)
    if platform:
        for side, name in (("TARGET", platform), ("BUILD", built_on)):
            system, _, rest = name.partition("/")
            architecture, _, variant = rest.partition("/")
            known |= {
                f"{side}PLATFORM": name, f"{side}OS": system, f"{side}ARCH": architecture, f"{side}VARIANT": variant
            }  # fmt: skip
    return known


_PREDEFINED = frozenset(
    f"{side}{part}" for side in ("TARGET", "BUILD") for part in ("PLATFORM", "OS", "ARCH", "VARIANT")
)


def _stages(instructions: list[Instruction], given: dict[str, str], fail: _Fail) -> list[Stage]:
    stages: list[Stage] = []
    values = {name: given[name] for name in _PREDEFINED if name in given}
    declared: set[str] = set()

    def expand(word: str, line: int) -> str:
        return _expand(word, values, declared, partial(fail, line))

    for item in instructions:
        if item.name == "FROM":
            stages.append(_from(item, expand, stages, fail))
            continue
        if not stages:
            if item.name != "ARG":
                fail(item.line, f"{item.name} before the first FROM", "only ARG may come before FROM")
            for word in item.words:
                name, equals, default = word.partition("=")
                declared.add(name)
                if name in given:
                    values[name] = given[name]
                elif equals:
                    values[name] = expand(default, item.line)
            continue
        uses = [_other(item, value, stages, fail) for value in _other_names(item)]
        if item.name in ("COPY", "ADD"):
            _check_sources(item, fail)
        if uses:
            stages[-1] = replace(stages[-1], others=(*stages[-1].others, *uses))
    if not stages:
        fail(0, "there is no FROM in it", "begin with FROM and the image to build on")
    return stages


def _from(item: Instruction, expand: Callable[[str, int], str], stages: list[Stage], fail: _Fail) -> Stage:
    words = item.words
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        fail(item.line, "FROM takes an image, or an image AS a name")
    name = words[2].lower() if len(words) == 3 else ""
    if name and not _STAGE_NAME.fullmatch(name):
        fail(item.line, f"“{words[2]}” is no name for a stage", "use letters, digits, and . _ - after a first letter")
    if name and any(stage.name == name for stage in stages):
        fail(item.line, f"two stages are named “{name}”")
    base = expand(words[0], item.line)
    if not base:
        fail(item.line, f"FROM {words[0]} names no image: it is empty once the ARGs are filled in")
    platform = "".join(item.flag("platform"))
    use = Use(item.line, item.end, words[0], base, expand(platform, item.line) if platform else "")
    return Stage(name, use, ())


def _other_names(item: Instruction) -> list[str]:
    if item.name == "COPY":
        return [value for value in item.flag("from") if value]
    if item.name == "RUN":
        options = (dict(_pair(part) for part in mount.split(",")) for mount in item.flag("mount"))
        return [option["from"] for option in options if option.get("from")]
    return []


def _pair(part: str) -> tuple[str, str]:
    key, _, value = part.partition("=")
    return key, value.strip("\"'")


def _other(item: Instruction, value: str, stages: list[Stage], fail: _Fail) -> Use:
    if "$" in value:
        fail(item.line, f"from={value}: variables are not filled in here", "give the image a stage: FROM … AS name")
    above = value.lower() in (stage.name for stage in stages[:-1])
    if value.isdecimal():
        if int(value) >= len(stages) - 1:
            fail(item.line, f"there is no stage {value} before this one", "stages count from 0")
    elif not above and not re.search(r"[/:.@]", value) and value != "scratch":
        # BuildKit would ask Docker Hub for an image of that name; a forgotten stage is the likelier mistake by far.
        fail(item.line, f"there is no stage “{value}” above", f"for an image of that name write {value}:latest")
    return Use(item.line, item.end, value, value)


def _check_sources(item: Instruction, fail: _Fail) -> None:
    if item.flag("from") or not item.words:
        return
    if len(item.words) < 2:
        fail(item.line, f"{item.name} needs a source and a destination")
    for source in item.words[:-1]:
        path = source.strip("\"'")
        if "://" in path or path.startswith("git@") or _HEREDOC.fullmatch(source):
            continue
        if posixpath.normpath(path.lstrip("/")).split("/")[0] == "..":
            fail(
                item.line,
                f"{item.name} {path} leaves the build context",
                "make a higher directory the image's context, or move the file into it",
            )


def _expand(word: str, values: Mapping[str, str], declared: set[str], fail: Callable[..., NoReturn]) -> str:
    """Shell-like, as BuildKit does it: $X ${X} ${X:-d} ${X-d} ${X:+y} ${X+y} ${X:?m} ${X?m}, quotes removed."""

    def value(match: re.Match[str]) -> str:
        if match[1] is not None:
            return match[1]
        if match[6]:
            fail(f"“{word}”: this ${{…}} is not known", "known: ${X} and ${X:-default}, ${X:+other}, ${X:?text}")
        name, operator, other = match[2] or match[3], match[4] or "", match[5] or ""
        present = name in values and (values[name] != "" or ":" not in operator)
        if operator.endswith("+"):
            return _expand(other, values, declared, fail) if present else ""
        if present:
            return values[name]
        if operator.endswith("-"):
            return _expand(other, values, declared, fail)
        if operator.endswith("?"):
            fail(f"“{word}”: {name} is not set: {other}", f"give the image the argument {name}")
        why = "has no value" if name in declared else "is not declared by an ARG before the first FROM"
        return fail(f"“{word}”: {name} {why}", f"write ARG {name}=default before FROM, or give the image that argument")

    quoted = word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'" else word
    return quoted if word.startswith("'") else _VARIABLE.sub(value, quoted)
