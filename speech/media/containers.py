"""Containers allowed as uploads, detected by their first bytes before any decoder is opened."""

import re

# FFmpeg's demuxers and the first bytes of their files. Excluded are raw codecs without a magic
# (GSM, G.729, Codec 2…), formats that reference other files (hls, concat, dash, sdp, rtsp,
# image2…), devices and synthetic sources.
_MAGIC = {
    demuxer: re.compile(pattern, re.DOTALL)
    for demuxer, pattern in {
        "aac": rb"ID3|ADIF|\xff[\xf0\xf1\xf8\xf9]",
        "ac3": rb"\x0b\x77|\x77\x0b",
        "aiff": rb"FORM....AIF[FC]",
        "amr": rb"#!AMR",
        "ape": rb"MAC ",
        "asf": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
        "au": rb"\.snd",
        "avi": rb"RIFF....AVI[ X]",
        "caf": rb"caff",
        "dsf": rb"DSD ",
        "dss": rb"[\x02\x03]dss",
        "dts": rb"\x7f\xfe\x80\x01|\xfe\x7f\x01\x80|\x1f\xff\xe8\x00|\xff\x1f\x00\xe8",
        "dtshd": rb"DTSHDHDR",
        "eac3": rb"\x0b\x77",
        "flac": rb"ID3|fLaC",
        "flv": rb"FLV",
        "loas": rb"\x56[\xe0-\xff]",
        "matroska": rb"\x1a\x45\xdf\xa3",
        "mov": rb"....(ftyp|moov|mdat|moof|styp|sidx|free|skip|wide|pnot|uuid|junk)",
        "mp3": rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]",
        "mpc": rb"MP\+",
        "mpc8": rb"MPCK",
        "mpeg": rb"\x00\x00\x01\xba",
        "mpegts": rb"\x47.{187}\x47|.{4}\x47.{191}\x47|\x47.{203}\x47",
        "mxf": rb"\x06\x0e\x2b\x34",
        "nistsphere": rb"NIST_1A",
        "nut": rb"nut/multimedia container\0",
        "ogg": rb"OggS",
        "oma": rb"EA3|ea3",
        "qcp": rb"RIFF....QLCM",
        "rm": rb"\.RMF|\.ra\xfd",
        "sox": rb"\.SoX|XoS\.",
        "tak": rb"tBaK",
        "tta": rb"ID3|TTA[12]",
        "voc": rb"Creative Voice File",
        "w64": rb"riff\x2e\x91\xcf\x11",
        "wav": rb"(RIFF|RF64|BW64|RIFX)....WAVE",
        "wv": rb"wvpk",
        "xwma": rb"RIFF....XWMA",
    }.items()
}

OGG_FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x06]", re.DOTALL)
"""The beginning of the first page of a stream in Ogg."""


def demuxers(data: bytes | memoryview) -> tuple[str, ...]:
    """FFmpeg's demuxers for a file with these first bytes; empty if it is not an allowed format."""
    return tuple(name for name, magic in _MAGIC.items() if magic.match(data))
