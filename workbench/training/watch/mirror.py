"""The mirror of a run: a folder elsewhere, as on a mounted Drive, that follows it while it goes on. Supervisor only; no torch.

Covers the newest and the best checkpoint, adapter (or model), what the run began from, events, configuration, fingerprints and
status, brought over by a thread of its own: a disk that is slow, full or gone delays nothing but the mirror, is reported in a
warning, and is tried again. Each part is
there as it was or as it is, never half: files are replaced, a checkpoint counts once it is marked complete, events are appended
in whole lines. Going on from a mirror is ``mirrored``'s part.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from workbench.atomic import replacing
from workbench.training.folder import ENDED, RunFolder, steps_of, write_json

EVERY = 2.0
"""Seconds between two looks at what is new."""
STUCK = 30.0
"""Seconds without a byte moved after which the end of the run no longer waits for the mirror."""
MARK = "mirror.json"
"""There in a mirror; it names the attempt that writes it, so that another session which goes on from it is not overwritten."""
_REPLACED = ("config.json", "fingerprints.json", "held.json", "lineage.json")
_STEP = 1 << 20
State = tuple[tuple[str, int, int], ...]


def mirror_of(mirror_dir: str, root: Path) -> Path:
    """Where the run in ``root`` is mirrored: a folder of its own name in ``mirror_dir``."""
    return Path(mirror_dir).absolute() / root.name


def is_mirror(root: Path) -> bool:
    """Whether a run's folder is the mirror of one."""
    return (root / MARK).exists()


class Mirror:
    """Brings one run's folder to ``target``; ``warn(level, text)`` records what its reader should know. ``close`` ends it."""

    def __init__(self, folder: RunFolder, target: Path, warn: Callable[[str, str], None]) -> None:
        self.folder, self.there, self._warn = folder, RunFolder(target), warn
        self._own, self._claimed = secrets.token_hex(8), False
        self._taken: dict[str, State] = {}
        self._appended: dict[str, int] = {}  # bytes of each file of events that are this run's own
        self._told = ""
        self._asked, self._done, self._moved = 0, 0, 0
        self._wake = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def flush(self, wanted: Callable[[], bool] = lambda: True, stuck: float = STUCK) -> bool:
        """Waits until all that there is now is in the mirror; False once nothing moves any more, or it is not ``wanted``."""
        with self._wake:
            self._asked += 1
            asked, moved, since = self._asked, self._moved, time.monotonic()
            self._wake.notify_all()
            while self._done < asked and not self._over and wanted():
                self._wake.wait(0.1)
                if moved != self._moved:
                    moved, since = self._moved, time.monotonic()
                elif time.monotonic() - since > stuck:
                    break
            return self._done >= asked and not self._told

    def close(self) -> None:
        """Ends the thread, which is not waited for: its disk may hang."""
        with self._wake:
            self._over = True
            self._wake.notify_all()

    def _work(self) -> None:
        while True:
            with self._wake:
                if self._done >= self._asked:
                    self._wake.wait(EVERY)
                asked = self._asked
                if self._over:
                    return
            self._look()
            with self._wake:
                self._done = asked
                self._wake.notify_all()

    def _look(self) -> None:
        """Brings over what is new, as far as the disk permits."""
        try:
            if not self._claim():
                return
            for name in _REPLACED:
                self._replace(name)
            self._append()
            self._checkpoints()
            for kept in self.folder.weights:
                self._kept(kept)
            self._replace("status.json")  # last: a mirror that says finished has all of it
        except FileNotFoundError as error:  # of the run: a newer one took its place, and the next look takes that
            if error.filename is None or Path(error.filename).is_relative_to(self.there.root):
                self._tell(error)
            return
        except Exception as error:  # whatever the disk does, the run goes on
            self._tell(error)
            return
        if self._told:
            self._told = ""
            self._warn("info", f"The mirror {self.there.root} follows the run again.")

    def _tell(self, error: Exception) -> None:
        said = str(getattr(error, "strerror", None) or error)
        if said != self._told:
            self._told = said
            self._warn(
                "warning", f"The mirror {self.there.root} cannot be written ({said}). The run goes on; it is tried again."
            )

    def _claim(self) -> bool:
        """Whether the mirror is this attempt's: the first look takes it, and another session that goes on from it ends this."""
        mark = self.there.root / MARK
        if self._claimed:
            if json.loads(mark.read_text("utf-8")).get("writer") == self._own:
                return True
            self._warn("warning", f"Another session goes on from the mirror {self.there.root}: this one leaves it alone.")
            self.close()
            return False
        self.there.root.mkdir(exist_ok=True)  # not its parents: a Drive that is gone must not become a folder of this disk
        write_json(mark, {"writer": self._own, "run": self.folder.root.name})
        self.there.remove_unfinished()
        shutil.rmtree(self._links, ignore_errors=True)
        status = self.folder.read_status()
        if status is not None and status.state not in ENDED:
            self.there.write_status(status)  # already now, so that a run lost before the first full copy is reported as killed
        self._claimed = True
        return True

    def _replace(self, name: str) -> None:
        """One small file, where it is another than before."""
        file = self.folder.root / name
        if not file.exists() or self._taken.get(name) == (state := _state(file)):
            return
        with replacing(self.there.root / name) as draft:
            self._copy(file, draft)
        self._taken[name] = state

    def _append(self) -> None:
        """The events' new whole lines; where the mirror has others than this run, as of another session, all of them anew."""
        for file in sorted(self.folder.root.glob("events-*.jsonl")):
            mirrored = self.there.root / file.name
            at = mirrored.stat().st_size if mirrored.exists() else 0
            if at != self._appended.get(file.name, 0) and not _begins_with(file, mirrored):
                self._warn("warning", f"The mirror {self.there.root} held events of another session: they are replaced.")
                mirrored.unlink()
                at = 0
            with file.open("rb") as source:
                source.seek(at)
                new = source.read()
            if new := new[: new.rfind(b"\n") + 1]:
                with mirrored.open("ab") as out:
                    out.write(new)
                self._moved += len(new)
            self._appended[file.name] = at + len(new)

    def _checkpoints(self) -> None:
        """The best complete checkpoint and the newest, and then no other one."""
        wanted = dict.fromkeys((self.folder.best, *self.folder.complete_checkpoints()[-1:]))
        there = {path.name for path in self.there.complete_checkpoints()}
        for checkpoint in (path for path in wanted if path is not None and path.name not in there):
            self._checkpoint(checkpoint)

    def _checkpoint(self, checkpoint: Path) -> None:
        step = int(steps_of(checkpoint))
        aim = self.there.checkpoint(step)
        shutil.rmtree(aim, ignore_errors=True)
        with self._held(checkpoint) as held:
            for file in (path for path in sorted(held.rglob("*")) if path.is_file() and path.name != "complete"):
                self._copy(file, aim / file.relative_to(held))
            if held == checkpoint and not (held / "complete").exists():
                return  # the run removed it meanwhile
        self.there.mark_complete(step, keep=1)

    @contextlib.contextmanager
    def _held(self, checkpoint: Path) -> Iterator[Path]:
        """The checkpoint's files under names that stay while the run removes it; itself where the disk has no such links."""
        links, mark = self._links, checkpoint / "complete"
        try:
            try:
                for file in (path for path in checkpoint.rglob("*") if path.is_file()):
                    link = links / file.relative_to(checkpoint)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    os.link(file, link)
            except FileNotFoundError:
                raise
            except OSError:
                links = checkpoint
            mark.stat()  # taken away before anything else is: with it all were there
            yield links
        finally:
            shutil.rmtree(self._links, ignore_errors=True)

    @property
    def _links(self) -> Path:
        return self.folder.root / ".mirrored"

    def _kept(self, kept: Path) -> None:
        """The adapter, or the model, where it is another than before."""
        if not kept.exists() or self._taken.get(kept.name) == (state := _state(kept)):
            return
        shutil.rmtree(self.there.fresh, ignore_errors=True)
        for file in (path for path in sorted(kept.rglob("*")) if path.is_file()):
            self._copy(file, self.there.fresh / file.relative_to(kept))
        if _state(kept) == state:  # else it was replaced meanwhile
            self.there.keep(self.there.root / kept.name)
            self._taken[kept.name] = state

    def _copy(self, file: Path, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, to.open("wb") as out:
            while part := source.read(_STEP):
                out.write(part)
                self._moved += len(part)
            out.flush()
            os.fsync(out.fileno())


def _begins_with(file: Path, mirrored: Path) -> bool:
    """Whether a file begins with all that another one holds."""
    with file.open("rb") as mine, mirrored.open("rb") as theirs:
        while part := theirs.read(_STEP):
            if mine.read(len(part)) != part:
                return False
    return True


def _state(path: Path) -> State:
    """What changes with the content of a file, or of a folder's files."""
    files = [path] if path.is_file() else [each for each in sorted(path.rglob("*")) if each.is_file()]
    return tuple((each.name, (stat := each.stat()).st_mtime_ns, stat.st_size) for each in files)
