"""The command line: the only module that prints.

Results go to standard output (``-o json`` is stable, for programs), progress and errors to standard error. Exit codes:
0 done, 1 it went wrong (the message says what to do), 2 wrong usage, 3 it waits for a person or ran out of time. Of
``diff``, as of kubectl's, 1 means that something would change, so that what went wrong is 2 there.
Nothing here decides anything about a deployment: the commands write what a person wants into the Application and read
what came of it, exactly as ``kubectl`` could.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import os
import re
import secrets
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, cast

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gitsync import __version__
from gitsync.application import API_GROUP, KIND, VERSION, Application
from gitsync.errors import GitsyncError, Held, Invalid, Waiting
from gitsync.model import (
    ANNOTATION_APPROVE,
    ANNOTATION_REFRESH,
    ANNOTATION_REQUESTED_AT,
    ANNOTATION_RETRY,
    ANNOTATION_ROLLBACK,
    Action,
    Json,
    ObjectRef,
)

T = TypeVar("T")

SILENCE = 10.0  # seconds after which somebody who waits is told that nothing answers

# What a cluster or a repository says is text: "[web]" is no markup, ":100:" no emoji.
out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

app = typer.Typer(
    name="gitsync",
    help="git push is the whole deployment: builds images, applies manifests, rolls forward or restores.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Output(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the result.")]
NamespaceOption = Annotated[str, typer.Option("--namespace", "-n", help="Namespace of the Application.")]
KubeconfigOption = Annotated[
    Path | None, typer.Option(help="kubeconfig file; default: KUBECONFIG, ~/.kube/config, in-cluster.")
]
ContextOption = Annotated[str, typer.Option(help="Context of the kubeconfig; default: its current one.")]
TimeoutOption = Annotated[float, typer.Option(min=1, help="Give up after so many seconds.")]


def main() -> None:
    app()


def _tell_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None: ...


# ---------------------------------------------------------------- printing


def emit(value: Any, output: Output, table: Callable[[], Table | str] | None = None) -> None:
    """One value in the form that was asked for; ``table`` is only called for people."""
    try:
        if output is Output.JSON or (table is None and output in (Output.TABLE, Output.WIDE)):
            sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        elif output is Output.YAML:
            from gitsync.render.yaml import dump

            out.print(dump(value), end="")
        else:
            assert table is not None
            made = table()
            out.print(lines_of(made) if isinstance(made, Table) else made)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # whoever read it has seen enough
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or what is still buffered fails at the exit
        fail(f"printing the result: {error.strerror}; give the output a place that takes it")


def lines_of(table: Table) -> str:
    """A line a row, as kubectl prints them: for grep and awk, and so that a narrow terminal leaves nothing out."""
    text = io.StringIO()
    Console(file=text, width=10_000, color_system=None, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def columns(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name not in ("MESSAGE", "CHANGE"))
    return table


def fail(error: GitsyncError | str, code: int = 1) -> NoReturn:
    err.print(f"gitsync: {error}", style="red" if err.is_terminal else None)
    raise typer.Exit(code)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; an explained error is one line and an exit code, Ctrl-C is 130 after clean-up."""
    try:
        return asyncio.run(work)
    except (Held, Waiting) as error:
        fail(error, 1 if error.reason == "Forbidden" else 3)  # a person's own right comes by no waiting
    except GitsyncError as error:
        fail(error)
    except TimeoutError:
        fail("ran out of time; 'gitsync get' tells how things are", 3)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def age(stamp: str) -> str:
    """``2026-01-02T03:04:05Z`` → ``3d4h``, as kubectl prints it."""
    try:
        seconds = int((datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds())
    except ValueError:
        return ""
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size}{unit}" + (f"{rest}{small}" if rest else "")
    return f"{max(seconds, 0)}s"


# ---------------------------------------------------------------- Applications in the cluster


@contextlib.asynccontextmanager
async def connected(kubeconfig: Path | None, context: str) -> AsyncGenerator[Any]:
    from gitsync.cluster.client import (  # imports the cluster's client library: only when needed
        PATIENCE,
        Cluster,
        applications,
    )

    async with await Cluster.connect(str(kubeconfig or ""), context, allow_plugins=True) as cluster:
        await applications(cluster, deadline=PATIENCE)
        yield cluster


def reference(name: str, namespace: str) -> ObjectRef:
    """``NAME``, or ``NAMESPACE/NAME`` as the logs print it."""
    if "/" in name:
        namespace, name = name.split("/", 1)
    return ObjectRef(group=API_GROUP, version=VERSION, kind=KIND, namespace=namespace or "default", name=name)


async def read(cluster: Any, ref: ObjectRef) -> Json:
    found = cast("Json | None", await cluster.get(ref))
    if found is None:
        raise Invalid("there is none of that name", doing="reading", ref=ref, hint="'gitsync get -A' lists them all")
    return found


def status_of(obj: Json) -> Json:
    return cast("Json", obj.get("status") or {})


def condition(obj: Json, kind: str) -> Json:
    conditions: list[Json] = status_of(obj).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), dict[str, Any]())


def summary(obj: Json) -> Json:
    """What the tables show, and what ``-o json`` of the verbs returns."""
    status = status_of(obj)
    return {
        "namespace": obj["metadata"].get("namespace", ""),
        "name": obj["metadata"]["name"],
        "sync": status.get("sync", "Unknown"),
        "health": status.get("health", "Unknown"),
        "revision": status.get("revision", ""),
        "ready": condition(obj, "Ready").get("status", "Unknown"),
        "message": condition(obj, "Ready").get("message", ""),
        "lastAttempt": status.get("lastAttempt") or {},
    }


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="One Application; default: all of the namespace.")] = "",
    namespace: NamespaceOption = "",
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")] = False,
    output: OutputOption = Output.TABLE,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Show Applications: what is deployed, whether it equals git, and whether it is healthy."""

    async def work() -> None:
        async with connected(kubeconfig, context) as cluster:
            if name:
                found = [await read(cluster, reference(name, namespace))]
            else:
                resource = await cluster.resource(API_GROUP, VERSION, KIND)
                listing = await cluster.list(resource, namespace="" if everywhere else namespace or "default")
                found = list(listing.items)

        def table() -> Table | str:
            if not found:
                return (
                    "No Applications here; 'gitsync run REPOSITORY' or 'kubectl apply' makes one, -A looks everywhere."
                )
            wide = output is Output.WIDE or bool(name)
            below = bool(name) and out.is_terminal  # a person reads it there, and a build's last lines are many
            heads = ["NAMESPACE", "NAME", "SYNC", "HEALTH", "READY", "REVISION", "AGE"]
            shown = columns(*heads, *(["REPOSITORY"] if wide else []), *(["MESSAGE"] if wide and not below else []))
            for obj in found:
                row = summary(obj)
                revision = re.sub(r"sha1:([0-9a-f]{12})[0-9a-f]*", r"sha1:\1", row["revision"])
                cells = [row["namespace"], row["name"], row["sync"], row["health"], row["ready"], revision]
                cells.append(age(obj["metadata"].get("creationTimestamp", "")))
                cells += [obj["spec"]["source"]["repository"]] if wide else []
                cells += [row["message"]] if wide and not below else []
                shown.add_row(*cells)
            return "\n".join([lines_of(shown), *(summary(obj)["message"] for obj in found)]) if below else shown

        emit(found[0] if name else found, output, table)

    run(work())


def attempt_of(obj: Json) -> str:
    """What the latest attempt is at, or came to, in one line; "" if there was none."""
    attempt = cast("Json", status_of(obj).get("lastAttempt") or {})
    return " ".join(str(attempt[part]) for part in ("revision", "stage", "message") if attempt.get(part))


async def follow(
    cluster: Any,
    ref: ObjectRef,
    settled: Callable[[Json], bool],
    *,
    doing: str,
    timeout: float,
    quiet: bool,
    before: Json | None = None,
) -> Json:
    """Read the Application until ``settled``, telling each new stage on standard error. ``Waiting`` if it takes longer.

    ``before``: the Application when something was asked of it. What it said then is no answer, and a status that stays
    as it was for ``SILENCE`` seconds is told: perhaps nobody is there to answer.
    """
    said, silent = attempt_of(before or {}), SILENCE
    began = asyncio.get_running_loop().time()
    obj = before or {}
    try:
        async with asyncio.timeout(timeout):
            with err.status("waiting") if err.is_terminal and not quiet else contextlib.nullcontext() as spinner:
                while True:
                    obj = await read(cluster, ref)
                    told = attempt_of(obj)
                    if told and told != said and not quiet:
                        said = told
                        if spinner is not None:
                            spinner.update(escape(told))
                        else:
                            err.print(told)
                    if settled(obj):
                        return obj
                    if status_of(obj) != status_of(before or {}):
                        silent = float("inf")
                    elif asyncio.get_running_loop().time() - began > silent:
                        silent = float("inf")
                        err.print(f"no gitsync has answered for {SILENCE:g} s; does one run, and follow {ref}?")
                    await asyncio.sleep(0.5)
    except TimeoutError:
        last = attempt_of(obj)
        raise Waiting(
            f"not done after {timeout:g} s" + (f", the last that was said is: {last}" if last else ""),
            doing=doing,
            ref=ref,
            hint=f"'gitsync get {ref.namespace}/{ref.name}' tells how things are",
        ) from None


def names(given: str, revision: str) -> bool:
    """Whether what a person gave (``3f2a1b0``, ``main@sha1:3f2a1b0…`` or nothing) names this revision."""
    return bool(revision) and revision.rsplit(":", 1)[-1].startswith(given.rsplit(":", 1)[-1])


def left(obj: Json) -> list[Json]:
    """What rollbacks have left, as far as the status says."""
    entries: list[Json] = status_of(obj).get("quarantined") or []
    return [each for each in entries if each.get("reason") == "RolledBack"]


def is_held(obj: Json) -> bool:
    """Whether it waits for a person's approval."""
    return condition(obj, "Ready").get("reason") in (Held.reason, Held.unrelated)


def conclude(obj: Json, output: Output) -> None:
    """Print how it ended; exit 0 only for a healthy one."""
    row = summary(obj)

    def table() -> str:
        head = (
            f"{row['namespace']}/{row['name']}: {row['sync']}, {row['health']}, {row['revision'] or 'nothing deployed'}"
        )
        return f"{head}\n{row['message']}" if row["ready"] != "True" and row["message"] else head

    emit(row, output, table)
    if row["ready"] != "True":
        raise typer.Exit(3 if is_held(obj) else 1)


def token() -> str:
    """A value for ``requestedAt`` that no other request has: the time, and a few random digits."""
    return f"{datetime.now(UTC).isoformat(timespec='microseconds')}-{secrets.token_hex(3)}"


@app.command()
def sync(
    name: Annotated[str, typer.Argument(help="The Application.")],
    namespace: NamespaceOption = "",
    retry: Annotated[bool, typer.Option("--retry", help="Try a quarantined revision again.")] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh-bases", help="Build on what the tags of the base images name by now.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Follow it until it serves or failed.")] = True,
    timeout: TimeoutOption = 900,
    output: OutputOption = Output.TABLE,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Look at git and the cluster now, instead of at the next poll or webhook."""

    async def work() -> None:
        ref, asked = reference(name, namespace), token()
        annotations = {ANNOTATION_REQUESTED_AT: asked}
        annotations |= {ANNOTATION_RETRY: asked} if retry else {}
        annotations |= {ANNOTATION_REFRESH: asked} if refresh else {}
        async with connected(kubeconfig, context) as cluster:
            before = await read(cluster, ref)
            if Application.parse(before).spec.sync.suspend:
                raise Invalid("it is suspended", doing="syncing", ref=ref, hint=f"'gitsync resume {name}' first")
            obj = await cluster.patch(ref, {"metadata": {"annotations": annotations}})
            if not wait:
                emit(summary(obj), output, lambda: f"{ref.namespace}/{ref.name}: sync requested")
                return
            obj = await follow(
                cluster,
                ref,
                lambda seen: (
                    status_of(seen).get("lastHandledReconcileAt") == asked
                    and condition(seen, "Reconciling").get("status") == "False"
                ),
                doing="syncing",
                timeout=timeout,
                quiet=output in (Output.JSON, Output.YAML),
                before=before,
            )
        conclude(obj, output)

    run(work())


@app.command()
def wait(
    name: Annotated[str, typer.Argument(help="The Application.")],
    namespace: NamespaceOption = "",
    revision: Annotated[str, typer.Option(help="Wait for this commit (a prefix is enough); default: any.")] = "",
    timeout: TimeoutOption = 900,
    output: OutputOption = Output.TABLE,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Wait until a revision serves. Ends with 1 at once if that revision was refused or restored."""

    def matches(text: str) -> bool:
        return names(revision, text)

    def settled(obj: Json) -> bool:
        status = status_of(obj)
        if condition(obj, "Ready").get("observedGeneration") != obj["metadata"].get("generation"):
            return False
        if condition(obj, "Ready").get("status") == "True" and matches(status.get("revision", "")):
            return True
        attempt = cast("Json", status.get("lastAttempt") or {})
        stalled = condition(obj, "Stalled").get("status") == "True"
        return stalled and matches(attempt.get("revision", ""))

    async def work() -> None:
        async with connected(kubeconfig, context) as cluster:
            ref = reference(name, namespace)
            doing = f"waiting for {revision} of" if revision else "waiting for"
            quiet = output in (Output.JSON, Output.YAML)
            obj = await follow(cluster, ref, settled, doing=doing, timeout=timeout, quiet=quiet)
        conclude(obj, output)

    run(work())


def _switch(name: str, namespace: str, suspend: bool, output: Output, kubeconfig: Path | None, context: str) -> None:
    async def work() -> None:
        ref = reference(name, namespace)
        async with connected(kubeconfig, context) as cluster:
            await read(cluster, ref)
            obj = await cluster.patch(ref, {"spec": {"sync": {"suspend": suspend}}})
        emit(summary(obj), output, lambda: f"{ref.namespace}/{ref.name}: {'suspended' if suspend else 'resumed'}")

    run(work())


@app.command()
def suspend(
    name: Annotated[str, typer.Argument(help="The Application.")],
    namespace: NamespaceOption = "",
    output: OutputOption = Output.TABLE,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Stop following git for a while. What runs goes on running."""
    _switch(name, namespace, True, output, kubeconfig, context)


@app.command()
def resume(
    name: Annotated[str, typer.Argument(help="The Application.")],
    namespace: NamespaceOption = "",
    output: OutputOption = Output.TABLE,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Follow git again."""
    _switch(name, namespace, False, output, kubeconfig, context)


@app.command()
def approve(
    name: Annotated[str, typer.Argument(help="The Application.")],
    revision: Annotated[
        str, typer.Argument(help="The revision whose held step is approved; default: the latest.")
    ] = "",
    namespace: NamespaceOption = "",
    output: OutputOption = Output.TABLE,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Approve what a revision waits for: deleting much, or following a rewritten history."""

    async def work() -> None:
        ref = reference(name, namespace)
        async with connected(kubeconfig, context) as cluster:
            obj = await read(cluster, ref)
            attempt = cast("Json", status_of(obj).get("lastAttempt") or {})
            held = cast("Json", status_of(obj).get("counts") or {}).get("held")  # stays while something else is told
            waits = held or is_held(obj)
            sha = (revision or (str(attempt.get("revision", "")) if waits else "")).rsplit(":", 1)[-1]
            if not sha:
                hint = f"'gitsync get {name} -o wide' tells how it is; a revision that is still to come has to be named"
                raise Invalid("nothing waits for approval", doing="approving", ref=ref, hint=hint)
            if not re.fullmatch("[0-9a-f]{7,64}", sha):
                hint = "give at least seven digits of its hash"
                raise Invalid(f"{revision!r} names no commit", doing="approving", ref=ref, hint=hint)
            annotations = {ANNOTATION_APPROVE: sha, ANNOTATION_REQUESTED_AT: token()}
            obj = await cluster.patch(ref, {"metadata": {"annotations": annotations}})
        emit(summary(obj), output, lambda: f"{ref.namespace}/{ref.name}: approved {sha[:12]}")

    run(work())


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The Application.")],
    revision: Annotated[
        str, typer.Argument(help="The deployment to go back to (see 'history'); default: the one before.")
    ] = "",
    namespace: NamespaceOption = "",
    timeout: TimeoutOption = 900,
    output: OutputOption = Output.TABLE,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Put an earlier deployment back, without git. What is left stays away; newer commits are deployed as ever."""

    async def work() -> None:
        ref, asked = reference(name, namespace), token()
        annotations = {ANNOTATION_ROLLBACK: f"{revision}@{asked}", ANNOTATION_REQUESTED_AT: asked}
        async with connected(kubeconfig, context) as cluster:
            before = await read(cluster, ref)
            former = str(status_of(before).get("revision", ""))
            if Application.parse(before).spec.sync.suspend:
                raise Invalid("it is suspended", doing="rolling back", ref=ref, hint=f"'gitsync resume {name}' first")

            def arrived(seen: Json) -> bool:
                now = str(status_of(seen).get("revision", ""))
                return names(revision, now) if revision else now != former or left(seen) != left(before)

            await cluster.patch(ref, {"metadata": {"annotations": annotations}})
            obj = await follow(
                cluster,
                ref,
                # git is asked right after it: that may be away, which is no longer the rollback's concern
                lambda seen: (
                    status_of(seen).get("lastHandledReconcileAt") == asked
                    and (condition(seen, "Reconciling").get("status") == "False" or arrived(seen))
                ),
                doing="rolling back",
                timeout=timeout,
                quiet=output in (Output.JSON, Output.YAML),
                before=before,
            )
        row, ready = summary(obj), condition(obj, "Ready")
        # Of what is newer in git, or of git itself, a rollback cannot be asked.
        newer = ready.get("reason") == "Quarantined" or row["lastAttempt"].get("stage") == "source"
        well = ready.get("status") == "True" or (newer and ready.get("reason") != "RevisionNotFound")
        if not arrived(obj) or (row["revision"] == former and not well):
            conclude(obj, output)  # it stayed where it was, and says why
            raise typer.Exit(1)
        emit(row, output, lambda: f"{ref.namespace}/{ref.name}: {row['revision']} serves")

    run(work())


@app.command()
def history(
    name: Annotated[str, typer.Argument(help="The Application.")],
    namespace: NamespaceOption = "",
    output: OutputOption = Output.TABLE,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Show what was deployed, when, by whom, and how it ended; newest first. Needs the right to read Secrets."""

    async def work() -> None:
        from gitsync.cluster.record import Records

        async with connected(kubeconfig, context) as cluster:
            ref = reference(name, namespace)
            await read(cluster, ref)
            record = await Records(cluster).load(ref)
        rows = [
            {
                "revision": str(entry.revision),
                "author": entry.revision.author,
                "subject": entry.revision.subject,
                "outcome": entry.outcome,
                "message": entry.message,
                "startedAt": entry.started_at.isoformat(),
                "finishedAt": entry.finished_at.isoformat(),
                "images": [image.reference for image in entry.images],
                "lowestReadyShare": entry.lowest_ready_share,
            }
            for entry in record.history
        ]

        def table() -> Table | str:
            if not rows:
                return "Nothing was deployed yet."
            shown = columns("AGE", "OUTCOME", "REVISION", "AUTHOR", "MESSAGE")
            for row in rows:
                revision = re.sub(r"sha1:([0-9a-f]{12})[0-9a-f]*", r"sha1:\1", str(row["revision"]))
                what = str(row["message"] or row["subject"])
                shown.add_row(age(str(row["finishedAt"])), str(row["outcome"]), revision, str(row["author"]), what)
            return shown

        emit(rows, output, table)

    run(work())


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option per setting of the process, named and described as the setting is."""
    from gitsync.settings import Settings

    own = inspect.signature(command, eval_str=True)
    options: list[inspect.Parameter] = []
    for name, field in Settings.model_fields.items():
        if name in own.parameters:
            continue
        default = field.get_default(call_default_factory=True)  # pyright: ignore[reportCallIssue] - fields take no data
        shown = str(default) if default not in (None, "", (), {}) and name not in ("identity", "cache_dir") else ""
        kind: Any = next((each for each in (bool, float, int) if field.annotation is each), str)
        text = f"{field.description} [env: GITSYNC_{name.upper()}]" + (f" [default: {shown}]" if shown else "")
        options.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, typer.Option(help=text, show_default=False)],
            )
        )
    parameters = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    command.__signature__ = own.replace(parameters=[*parameters, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in (*parameters, *options)}
    return command


@app.command()
@with_settings
def diff(
    name: Annotated[str, typer.Argument(help="The Application.")],
    namespace: NamespaceOption = "",
    output: OutputOption = Output.TABLE,
    **settings: Any,
) -> None:
    """Show what the newest commit would change, field by field; nothing is built or written.

    Exit code 0: nothing; 1: what is shown; 2 or more: it could not be told.
    """

    async def work() -> Sequence[Json]:
        from gitsync.service import preview
        from gitsync.settings import Settings

        loaded = Settings.load(**(settings | {"log_level": settings.get("log_level") or "error"}))
        planned = await preview(loaded, reference(name, namespace or loaded.namespace))
        rows: list[Json] = [
            {
                "action": change.action.value,
                "object": str(change.manifest.ref),
                "from": str(change.manifest.origin),
                "fields": [{"path": f.path, "before": f.before, "after": f.after} for f in change.fields],
            }
            for change in planned.changes
            if change.action is not Action.UNCHANGED
        ]
        for action, items in (("prune", planned.deletions), ("hold", planned.held)):
            rows += [{"action": action, "object": str(item.ref), "from": "", "fields": []} for item in items]

        def table() -> str:
            if not rows:
                return f"{planned.revision} changes nothing."
            lines = [str(planned.revision)]
            for row in rows:
                lines.append(f"{row['action']:8} {row['object']}" + (f"  ({row['from']})" if row["from"] else ""))
                if row["action"] != "create":
                    lines += [
                        f"           {f['path']}: {shown(f['before'])} → {shown(f['after'])}" for f in row["fields"]
                    ]
            return "\n".join(lines)

        emit({"revision": str(planned.revision), "changes": rows}, output, table)
        return rows

    try:
        changes = run(work())
    except typer.Exit as ended:
        raise typer.Exit(2 if ended.exit_code == 1 else ended.exit_code) from None
    if changes:
        raise typer.Exit(1)


def shown(value: Any) -> str:
    return "nothing" if value is None else orjson.dumps(value).decode()


# ---------------------------------------------------------------- one stage by itself, without a cluster


def _cache_dir() -> Path:
    from gitsync.settings import Settings

    return Settings.load().cache_dir


@app.command()
def images(
    repository: Annotated[str, typer.Argument(metavar="REPO", help="A directory, or the URL of a git repository.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit; default: HEAD.")] = "",
    since: Annotated[str, typer.Option(help="Tell which images the change since this commit touches.")] = "",
    path: Annotated[str, typer.Option(help="Directory of the manifests; default: manifests, deploy or k8s.")] = "",
    output: OutputOption = Output.JSON,
) -> None:
    """List the images that a repository builds: name, context, fingerprint, and what a change touches."""

    async def work() -> None:
        from gitsync.attempt import manifests_path
        from gitsync.images import ImageUse, describe, select
        from gitsync.render import references, render
        from gitsync.source import GitPolicy, GitSource

        source = GitSource(_cache_dir(), GitPolicy(allow_insecure_transports=True))
        found = await source.open(repository, revision)
        snapshot = await source.snapshot(found)
        before = await source.snapshot(await source.open(repository, since)) if since else None
        desired = await render(snapshot, path or manifests_path(snapshot))
        specs = select(
            [entry.path for entry in snapshot.entries()],
            [ImageUse(reference=use.image, origin=use.origin) for use in references(desired.manifests)],
            repository=found.repository,
        )
        rows = await describe(snapshot, specs, since=before)

        def table() -> Table | str:
            if not rows:
                return "The manifests reference no image that this repository builds."
            shown = columns("NAME", "CONTEXT", "DOCKERFILE", "TAG", *(["TOUCHED BY"] if since else []))
            for row in rows:
                cells = [str(row[key]) for key in ("name", "context", "dockerfile", "tag")]
                shown.add_row(*cells, *([", ".join(row["files"]) or "-"] if since else []))
            return shown

        emit(rows, output, table)

    run(work())


@app.command()
def render(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory or file: YAML, Kustomize or a chart.")],
    output: OutputOption = Output.JSON,
) -> None:
    """Print the objects of a directory as gitsync reads them: strictly, and exactly as kubectl would."""

    async def work() -> None:
        from gitsync.render import render_directory

        manifests = await render_directory(directory)

        def table() -> Table:
            shown = columns("KIND", "NAMESPACE", "NAME", "FROM")
            for each in manifests:
                shown.add_row(each.ref.kind, each.ref.namespace, each.ref.name, str(each.origin))
            return shown

        emit([each.object for each in manifests], output, table)

    run(work())


@app.command()
def health(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Objects as read from a cluster; - is stdin.")],
    output: OutputOption = Output.JSON,
) -> None:
    """Judge the health of objects as read from a cluster ('kubectl get -o yaml')."""
    from gitsync.model import Origin
    from gitsync.render.yaml import load
    from gitsync.rollout.health import describe

    async def work() -> None:
        rows: list[Json] = []
        for file in files:
            try:
                data = sys.stdin.buffer.read() if str(file) == "-" else await asyncio.to_thread(file.read_bytes)
            except OSError as error:
                raise Invalid(str(error.strerror), doing=f"reading {file}", hint="name a file of objects") from error
            for document in load(data, Origin(file=str(file))):
                rows += [dict(describe(each)) for each in items_of(document.value)]

        def table() -> Table:
            shown = columns("KIND", "NAMESPACE", "NAME", "STATUS", "MESSAGE")
            for row in rows:
                shown.add_row(*(str(row[key]) for key in ("kind", "namespace", "name", "status", "message")))
            return shown

        emit(rows, output, table)

    run(work())


def items_of(value: Any, inherited: tuple[str, str] = ("", "")) -> list[Any]:
    """The items of a ``List``, or the object itself. Lists nest; the items of a ``PodList`` need not say ``Pod``."""
    obj = cast("Json", value) if isinstance(value, dict) else {}
    if inherited[1] and obj and not obj.get("kind"):
        obj = value = {**obj, "apiVersion": inherited[0], "kind": inherited[1]}
    kind, items = obj.get("kind"), obj.get("items", ())
    if not isinstance(kind, str) or not kind.endswith("List") or not isinstance(items, list | None):
        return [value]
    below = (str(obj.get("apiVersion") or ""), kind.removesuffix("List"))
    return [each for item in cast("list[Any]", items or []) for each in items_of(item, below)]


# ---------------------------------------------------------------- the service


@app.command("run")
@with_settings
def run_service(
    repository: Annotated[
        str, typer.Argument(help="Follow this one repository: its Application is made. Default: all Applications.")
    ] = "",
    *,
    name: Annotated[str, typer.Option(help="With REPOSITORY: the Application's name; default: the repository's.")] = "",
    branch: Annotated[str, typer.Option(help="With REPOSITORY: the branch to follow.")] = "main",
    path: Annotated[str, typer.Option(help="With REPOSITORY: directory of the manifests.")] = "",
    secret: Annotated[
        str, typer.Option(help="With REPOSITORY: Secret in the Application's namespace with the login to the git host.")
    ] = "",
    accept_interruption: Annotated[
        bool, typer.Option("--accept-interruption", help="With REPOSITORY: allow changes that interrupt, like a Pod's.")
    ] = False,
    **settings: Any,
) -> None:
    """Run the service: follow every Application of the cluster, or one repository, until Ctrl-C."""
    from gitsync.service import run_repository, serve
    from gitsync.settings import Settings

    async def work() -> None:
        loaded = Settings.load(**settings)
        stopping = asyncio.current_task()
        assert stopping is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.cancel)
        if repository:
            await run_repository(
                loaded,
                repository,
                name=name,
                branch=branch,
                path=path,
                secret=secret,
                accept_interruption=accept_interruption,
            )
        else:
            await serve(loaded)

    with contextlib.suppress(asyncio.CancelledError):
        run(work())


@app.command()
def sandbox(
    kubeconfig: Annotated[Path | None, typer.Option(help="Where to write the kubeconfig.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0 takes a free one.")] = 0,
    engine: Annotated[str, typer.Option(help="podman, docker or none; default: whichever is there.")] = "",
) -> None:
    """Run a throw-away one-node cluster until Ctrl-C: real containers, no Kubernetes needed."""
    from gitsync.sandbox import Sandbox, SandboxError

    async def work() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with Sandbox(port=port, kubeconfig=kubeconfig, engine=engine) as cluster:
            err.print(f"The API answers at {cluster.url}. In another terminal:")
            out.print(f"export KUBECONFIG={cluster.kubeconfig}")
            await stop.wait()
            err.print("removing everything")

    try:
        run(work())
    except SandboxError as error:
        fail(f"starting the sandbox: {error}")


class Story:
    """The demo's screen on standard error: a status that moves on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._status = err.status("") if err.is_terminal else None

    def line(self, text: str) -> None:
        err.print(text)

    def now(self, text: str) -> None:
        if self._status is None:
            return
        if text:
            self._status.update(escape(text))
            self._status.start()
        else:
            self._status.stop()


@app.command("demo")
def run_demo(
    wait: Annotated[bool, typer.Option("--wait", help="Wait for you to make the push.")] = False,
    once: Annotated[
        bool, typer.Option("--once", help="End when the push is served; exit 0 if no request failed.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no registry elsewhere: assemble the base image.")
    ] = False,
    engine: Annotated[str, typer.Option(help="podman or docker; default: whichever is there.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Deploy a sample by git push on this machine, in a sandbox of its own, and remove all of it on Ctrl-C."""
    from gitsync import demo

    async def work() -> demo.Figures:
        task = asyncio.current_task()
        assert task is not None

        def stop() -> None:
            if not task.cancelling():  # a second Ctrl-C does not interrupt the cleaning up
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        return await demo.run(demo.Options(wait=wait, once=once, offline=offline, engine=engine), Story())

    try:
        figures = run(work())
    except asyncio.CancelledError:
        err.print("everything is removed")
        raise typer.Exit(130 if once else 0) from None
    value = {
        "secondsToFirstServe": round(figures.to_first_serve, 1),
        "secondsFromPushToServed": round(figures.from_push_to_served, 1),
        "secondsToPushedChangeServed": round(figures.to_pushed_change_served, 1),
        "requestsAnswered": figures.answered,
        "requestsFailed": figures.failed,
        "failures": dict(figures.failures),
        "versions": dict(figures.versions),
        "baseImage": figures.base_image,
    }
    emit(value, output, lambda: "\n".join(f"{name:28} {shown(each)}" for name, each in value.items()))
    if figures.failed:
        raise typer.Exit(1)


@app.command()
def version(output: OutputOption = Output.TABLE) -> None:
    """Print the version."""
    emit({"version": __version__}, output, lambda: __version__)
