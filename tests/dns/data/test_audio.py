"""Files that do not say the truth of themselves, and blocks in place of a whole."""

import struct

import numpy as np
import pytest
import soundfile
import torch
from made_audio import noise_like, speech_like, write_wav

from abckd_dns.data.audio import Header, read, read_blocks, read_header, read_segment, read_speech
from abckd_dns.data.resampling import resample, resample_blocks
from abckd_dns.data.writing import choose_format, write_blocks
from abckd_dns.errors import InputError

RATES = [(48_000, 16_000), (16_000, 44_100), (22_050, 16_000), (8_000, 16_000), (44_099, 16_000)]


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("sizes", [(1, 7, 50_000, 3), (20_000, 20_000), (5,)])
def test_resampling_in_blocks_gives_the_same(rates, sizes):
    waveform = torch.from_numpy(np.stack([noise_like(1, seed, sum(sizes)) for seed in range(2)]))
    whole = resample(waveform, *rates)
    blocks = torch.cat(list(resample_blocks(waveform.split(list(sizes), dim=-1), *rates)), dim=-1)
    assert blocks.shape == whole.shape
    torch.testing.assert_close(blocks, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
@pytest.mark.parametrize("size", [0, 1_000, 0xFFFFFFFF, "right", "too large"])
def test_a_wave_file_is_read_to_its_end_whatever_its_header_says(tmp_path, size, subtype):
    path = tmp_path / "a.wav"
    soundfile.write(path, speech_like(2, 0), 16_000, subtype=subtype)
    whole, _ = read(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    if size != "right":
        number = len(content) * 2 if size == "too large" else size
        content[place : place + 4] = struct.pack("<I", number)
    path.write_bytes(content)
    assert torch.equal(read(path)[0], whole)
    assert torch.equal(read_segment(path, 100, 0.9), read_segment(path, 100, 0.9))
    assert len(read_speech(path)) == 32_000


def test_chunks_behind_the_samples_are_no_samples(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, speech_like(1, 0), 16_000)
    with path.open("ab") as file:
        file.write(b"LIST" + struct.pack("<I", 6) + b"INFOab")
    assert len(read_speech(path)) == 16_000


def without_header(path, seconds_quiet_first):
    """An MP3 of variable bit rate without the frame that says its length, in 4 s of sound."""
    loud, quiet = speech_like(2, 0), np.zeros(32_000, np.float32)
    samples = np.concatenate([quiet, loud] if seconds_quiet_first else [loud, quiet])
    how = dict(subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.5)
    soundfile.write(path, samples, 16_000, format="MP3", **how)
    raw = path.read_bytes()
    start = next(k for k in range(len(raw)) if raw[k] == 0xFF and raw[k + 1] & 0xE0 == 0xE0)
    kbit = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[raw[start + 2] >> 4]
    path.write_bytes(raw[start + 72 * kbit * 1000 // 16_000 + (raw[start + 2] >> 1 & 1) :])
    return path


@pytest.mark.parametrize("quiet_first", [True, False])
def test_the_length_of_an_mp3_is_not_guessed(tmp_path, quiet_first):
    path = without_header(tmp_path / "a.mp3", quiet_first)
    length = len(read_speech(path))
    assert 64_000 <= length < 64_000 + 4_000  # a codec adds some frames
    guess = soundfile.info(path).frames
    assert abs(guess - length) > 8_000, "this file shows nothing"
    assert read_header(path).length is None
    for position in (0.0, 0.5, 0.999):
        assert len(read_segment(path, 8_000, position)) == 8_000


def test_what_only_ffmpeg_reads(tmp_path):
    import av

    path, samples = tmp_path / "a.m4a", speech_like(2, 0)
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    speech = read_speech(path)
    assert abs(len(speech) - 32_000) < 2_100
    assert read_header(path)[:3] == (16_000, 1, None)
    assert torch.equal(read_segment(path, 4_000, 0.0), speech[:4_000])
    form = choose_format(tmp_path / "b.m4a", read_header(path))
    assert form.path == tmp_path / "b.m4a.wav" and "written as b.m4a.wav; .m4a cannot be written" in form.remark


def test_a_file_that_was_cut_off_says_where_it_ends(tmp_path, capsys):
    path = write_wav(tmp_path / "a.wav", speech_like(2, 0))
    path.write_bytes(path.read_bytes()[:32_044])
    assert len(read_speech(path)) == 16_000
    soundfile.write(tmp_path / "b.flac", speech_like(10, 0), 16_000)
    (tmp_path / "b.flac").write_bytes((tmp_path / "b.flac").read_bytes()[:60_000])
    with pytest.raises(InputError, match=r"cannot read .*b.flac after \d\.\d\d s: .*lost sync"):
        list(read_blocks(tmp_path / "b.flac"))


@pytest.mark.parametrize("content", [b"", b"RIFF", bytes(1000)])
def test_what_is_no_audio(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*a.wav: (it is empty|.*\w)"):
        read_speech(tmp_path / "a.wav")


def test_channels_in_opposite_phase_are_not_averaged_to_nothing(tmp_path, capsys):
    samples = speech_like(2, 0)
    path = write_wav(tmp_path / "a.wav", np.stack([samples, -samples], 1))
    np.testing.assert_allclose(read_speech(path), samples, atol=1e-4)
    assert "a.wav: its channels are in opposite phase" in capsys.readouterr().err
    np.testing.assert_allclose(read_segment(path, 32_000, 0.0), samples, atol=1e-4)
    write_wav(tmp_path / "b.wav", np.stack([samples, 0.5 * samples], 1))
    np.testing.assert_allclose(read_speech(tmp_path / "b.wav"), 0.75 * samples, atol=1e-4)


def test_one_channel_is_chosen(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.stack([0.1 * (k + 1) * np.ones(100) for k in range(4)], 1))
    levels = [read_segment(path, 100, 0.0, channel=share)[50].item() for share in (0.0, 0.3, 0.5, 0.99)]
    assert levels == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-4)


def sine(peak: float) -> torch.Tensor:
    return peak * torch.sin(torch.arange(16_000) / 5)[None]


@pytest.mark.parametrize(
    ("name", "rate", "channels", "written"),
    [
        ("a.opus", 44_100, 2, ("a.opus", "OGG", "OPUS", 48_000)),
        ("a.mp3", 96_000, 1, ("a.mp3", "MP3", "MPEG_LAYER_III", 48_000)),
        ("a.mp3", 16_000, 3, ("a.mp3.wav", "WAV", "PCM_16", 16_000)),
        ("a.oga", 16_000, 1, ("a.oga", "OGG", "VORBIS", 16_000)),
        ("a.WAV", 16_000, 1, ("a.WAV", "WAV", "PCM_16", 16_000)),
        ("a.flac", 16_000, 10, ("a.flac.wav", "WAV", "PCM_16", 16_000)),
    ],
)
def test_formats_that_are_written(tmp_path, name, rate, channels, written):
    form = choose_format(tmp_path / name, Header(rate, channels, None, "", "PCM_16"))
    assert (form.path.name, *form[1:4]) == written
    assert bool(form.remark) == (form.path.name != name or form.rate != rate)
    write_blocks(form, channels, lambda: [sine(0.5).repeat(channels, 1)] * 3, rate, scale=False)
    found = soundfile.info(form.path)
    assert found.channels == channels and abs(found.duration - 48_000 / rate) < 0.1


@pytest.mark.parametrize("scale", [False, True])
def test_values_beyond_full_scale_are_counted(tmp_path, scale):
    header = Header(16_000, 1, None, "WAV", "PCM_16")
    form = choose_format(tmp_path / "a.wav", header)
    found = write_blocks(form, 1, lambda: [sine(2.0), sine(0.5)], 16_000, scale)
    assert (found.values, found.peak) == (32_000, pytest.approx(2, abs=1e-3))
    assert found.beyond == int((sine(2.0).abs() > 1).sum())
    samples, _ = soundfile.read(tmp_path / "a.wav")
    assert np.abs(samples).max() == pytest.approx(0.999 if scale else 1, abs=1e-3)
    assert np.abs(samples[16_000:]).max() == pytest.approx(0.25 if scale else 0.5, abs=1e-3)

    form = choose_format(tmp_path / "b.wav", header._replace(subtype="FLOAT"))
    write_blocks(form, 1, lambda: [sine(2.0)], 16_000, scale)
    assert np.abs(soundfile.read(tmp_path / "b.wav")[0]).max() == pytest.approx(2, abs=1e-3)


def test_nothing_is_left_of_a_file_with_values_that_are_no_numbers(tmp_path):
    form = choose_format(tmp_path / "a.wav", Header(16_000, 1, None, "WAV", "PCM_16"))
    with pytest.raises(InputError, match="a.wav: it would have values that are not finite"):
        write_blocks(form, 1, lambda: [sine(0.5), sine(float("nan"))], 16_000, scale=False)
    assert not list(tmp_path.iterdir())
