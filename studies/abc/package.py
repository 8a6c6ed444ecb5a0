"""What this study takes from abckd_dns, in one place: where a name lies there is no concern of the other files."""

from abckd_dns.constants import SAMPLE_RATE
from abckd_dns.data.audio import read_speech
from abckd_dns.data.mixtures import Mixtures
from abckd_dns.demo.packages import Clip, Collection, Package, fetch, game_sounds, read_manifest
from abckd_dns.errors import InputError
from abckd_dns.evaluation.intervals import mean_interval
from abckd_dns.evaluation.metrics import METRICS
from abckd_dns.files import user_cache, write_atomically, write_json
from abckd_dns.network.config import PRESETS
from abckd_dns.network.denoiser import Denoiser
from abckd_dns.network.load import load_network, save_checkpoint
from abckd_dns.network.stft import HOP, Stft, compress
from abckd_dns.options import MixtureOptions, PrepareOptions, TrainOptions
from abckd_dns.rivals import deepfilter, wheels
from abckd_dns.rivals.denoisers import RIVALS
from abckd_dns.study.config import tomllib
from abckd_dns.study.data import fetch_study_data
from abckd_dns.study.statistics import difference
from abckd_dns.training.objective import SpeechLoss

__all__ = [
    "HOP",
    "METRICS",
    "PRESETS",
    "RIVALS",
    "SAMPLE_RATE",
    "Clip",
    "Collection",
    "Denoiser",
    "InputError",
    "MixtureOptions",
    "Mixtures",
    "Package",
    "PrepareOptions",
    "SpeechLoss",
    "Stft",
    "TrainOptions",
    "compress",
    "deepfilter",
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
    "wheels",
    "write_atomically",
    "write_json",
]
