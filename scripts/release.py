"""Make a release: wheel, source, bill of materials and checksums, the same bytes wherever and whenever it is made.

    python -m scripts.release [FOLDER]      default: dist

Made of the commit that is checked out (`git archive`), never of files beside it; every time in it is the commit's.
"""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import uuid
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BACKEND = "import setuptools.build_meta as b, sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"
PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^ ;\\]+)", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
OLDEST_ZIP = 315_532_800
"""1980-01-01 in Unix seconds: zip files know no time before."""


def main(words: list[str]) -> int:
    """Make the release into a folder, in place of what is there."""
    output = Path(words[0]).absolute() if words else ROOT / "dist"
    moment = max(int(_git("log", "-1", "--format=%ct")), OLDEST_ZIP)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout  # noqa: S607
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(source, filter="data")
        project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for made, settle in (("build_wheel", settle_wheel), ("build_sdist", settle_source)):
            path = Path(temporary) / _build(source, made, Path(temporary), moment)
            settle(path, output / path.name, moment)
        bill = bill_of_materials((source / "requirements" / "run.lock").read_text(encoding="utf-8"), project, moment)
    (output / f"tollkeeper-{project['version']}.cdx.json").write_text(bill, encoding="utf-8")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(output.iterdir())]
    (output / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    print("".join(sums), end="")
    return 0


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout  # noqa: S603, S607


def _build(source: Path, made: str, folder: Path, moment: int) -> str:
    """Build with the pinned setuptools; return the file's name."""
    command = [sys.executable, "-c", BACKEND, made, str(folder)]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**clean, "SOURCE_DATE_EPOCH": str(moment)}
    # our own build
    done = subprocess.run(command, cwd=source, env=environment, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[-1]


def settle_wheel(path: Path, target: Path, moment: int) -> None:
    """Copy a wheel, each file in its order with the same time and mode."""
    when = datetime.fromtimestamp(moment, UTC).timetuple()[:6]
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        # RECORD last, as installers expect
        for name in sorted(old.namelist(), key=lambda name: (name.endswith(".dist-info/RECORD"), name)):
            row = zipfile.ZipInfo(name, when)
            row.external_attr, row.compress_type, row.create_system = 0o100644 << 16, zipfile.ZIP_DEFLATED, 3
            new.writestr(row, old.read(name))


def settle_source(path: Path, target: Path, moment: int) -> None:
    """Copy a source archive, each file in its order with the same time, mode and owner."""
    raw = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted((row for row in old.getmembers() if row.isfile()), key=lambda row: row.name):
            row = tarfile.TarInfo(member.name)
            row.size, row.mtime, row.mode = member.size, moment, 0o755 if member.mode & 0o100 else 0o644
            new.addfile(row, old.extractfile(member))
    target.write_bytes(gzip.compress(raw.getvalue(), mtime=moment))


def bill_of_materials(lock: str, project: dict[str, Any], moment: int) -> str:
    """Return the CycloneDX document of everything that runs: the lock's packages with the hashes that are accepted."""
    parts = []
    found = list(PINNED.finditer(lock))
    for number, row in enumerate(found):
        block = lock[row.end() : found[number + 1].start() if number + 1 < len(found) else len(lock)]
        name, version = re.sub(r"[-_.]+", "-", row[1]).lower(), row[2]
        files = [{"alg": "SHA-256", "content": digest} for digest in sorted(HASH.findall(block))]
        page = {"type": "distribution", "url": f"https://pypi.org/project/{name}/{version}/", "hashes": files}
        package = {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
        parts.append({**package, "bom-ref": package["purl"], "externalReferences": [page]})
    root = {"type": "application", "name": project["name"], "version": project["version"]}
    reference = f"pkg:pypi/{project['name']}@{project['version']}"
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, reference + lock)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {**root, "bom-ref": reference, "purl": reference, "description": project["description"]},
        },
        "components": parts,
        "dependencies": [{"ref": reference, "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    return json.dumps(document, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
