"""What this study takes from abckd_dns, in one place: where a name lies there is no concern of the other files."""

from abckd_dns.audio import read_speech
from abckd_dns.checkpoints import write_atomically, write_json
from abckd_dns.data import MixtureOptions, Mixtures
from abckd_dns.errors import InputError
from abckd_dns.metrics import METRICS, mean_interval
from abckd_dns.model import PRESETS, Denoiser
from abckd_dns.networks import load_network, save_checkpoint
from abckd_dns.objective import SpeechLoss
from abckd_dns.package_audio import Clip, Collection, Package, fetch, game_sounds, read_manifest
from abckd_dns.sources import user_cache
from abckd_dns.stft import HOP, SAMPLE_RATE, Stft, compress
from abckd_dns.study.config import tomllib
from abckd_dns.study.data import fetch_study_data
from abckd_dns.study.statistics import difference

__all__ = [
    "HOP",
    "METRICS",
    "PRESETS",
    "SAMPLE_RATE",
    "Clip",
    "Collection",
    "Denoiser",
    "InputError",
    "MixtureOptions",
    "Mixtures",
    "Package",
    "SpeechLoss",
    "Stft",
    "compress",
    "difference",
    "fetch",
    "fetch_study_data",
    "game_sounds",
    "load_network",
    "mean_interval",
    "read_manifest",
    "read_speech",
    "save_checkpoint",
    "tomllib",
    "user_cache",
    "write_atomically",
    "write_json",
]
