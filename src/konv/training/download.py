"""Fetching one file of a data set from the web with pooch: several addresses, a checksum, a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from konv.training.idx import read_bytes
from konv.training.sources import RemoteFile, wrong_content

if TYPE_CHECKING:
    from rich.console import Console

TIMEOUT = 15.0  # seconds without an answer before the next address is tried


def download_file(
    file: RemoteFile, addresses: tuple[str, ...], target: Path, console: Console | None
) -> tuple[bytes | None, list[str]]:
    """The content of ``file`` from the first address that serves it right, and why those before it did not.

    Parameters
    ----------
    file : RemoteFile
        What to fetch, with the checksums that it must have.
    addresses : tuple of str
        Folders on the web, each ending in a slash, tried in order.
    target : Path
        The folder to keep the archive in; made if it is missing.
    console : rich.console.Console, optional
        Shows the address and how far it is.

    Returns
    -------
    content : bytes or None
        Decompressed and checked; None if no address has it.
    failures : list of str
        An address and a reason each.
    """
    import pooch
    import requests

    failures: list[str] = []
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")  # what it would say, the console says
    try:
        for address in addresses:
            url = f"{address}{file.name}.gz"
            try:
                with _Bar(url, console) as bar:
                    path = pooch.retrieve(
                        url,
                        known_hash=f"md5:{file.gz_md5}",
                        fname=f"{file.name}.gz",
                        path=target,
                        downloader=pooch.HTTPDownloader(progressbar=bar, timeout=TIMEOUT),
                    )
                content = read_bytes(path)
                reason = wrong_content(content, file, Path(path))
                if not reason:
                    return content, failures
            except requests.HTTPError as error:
                reason = "the server refused"
                if error.response is not None:
                    reason = f"the server answered {error.response.status_code} {error.response.reason}"
                    error.response.close()
            except requests.Timeout:
                reason = f"no answer in {TIMEOUT:g} seconds"
            except requests.ConnectionError:
                reason = "no connection"
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
            failures.append(f"{url}: {reason}")
    finally:
        logger.setLevel(level)
    return None, failures


class _Bar:
    """A rich progress bar with the four names that pooch calls; a plain line where the console is no terminal."""

    def __init__(self, url: str, console: Console | None) -> None:
        self._url, self._console = url, console
        self._bar: Any = None
        self.total = 0

    def __enter__(self) -> _Bar:
        from rich import progress

        if self._console is None:
            return self
        if not self._console.is_terminal:
            self._console.print(f"downloading {self._url}", markup=False, highlight=False, soft_wrap=True)
            return self
        columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn())
        self._bar = progress.Progress(*columns, progress.TransferSpeedColumn(), console=self._console)
        self._task = self._bar.add_task(self._url, total=None)
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, size: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=size, total=self.total or None)

    def reset(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=0)

    def close(self) -> None:
        """Nothing to do: the ``with`` block ends the bar."""
