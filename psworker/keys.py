"""The keys of sparse tables as users have them: any whole numbers from 0 to 2^64-1, or hashes of features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from protocol.errors import BadRequest
from protocol.tables import MAX_KEYS, Keys

__all__ = ["as_keys", "hash_features"]

_LARGEST: Final = (1 << 64) - 1
_EXPECTED: Final = "keys are whole numbers from 0 to 2^64-1"


def hash_features(features: Iterable[str | bytes], seed: int = 0) -> Keys:
    """Return a key for each feature, such as ``"user=17"``: the XXH3-64 of its text in UTF-8.

    It is the same in every process, on every machine and in every version. Of a million features, two have
    the same key with a probability of 3e-8.

    Args:
        features: texts, or bytes as they are.
        seed: of the hash; 0 to 2^64-1.

    Returns:
        uint64 of shape (number of features,).

    Raises:
        BadRequest: a feature is neither text nor bytes, or the seed out of range.
    """
    if type(seed) is not int or not 0 <= seed <= _LARGEST:
        raise BadRequest("a seed is a whole number from 0 to 2^64-1", field="seed", value=seed)
    if isinstance(features, str | bytes):
        raise BadRequest("give a list of features, not one", field="features", value=features)
    digest = xxhash.xxh3_64_intdigest
    hashes = [
        digest(feature.encode(), seed) if type(feature) is str else _hashed(feature, seed)
        for feature in features
    ]
    return np.array(hashes, np.uint64)


def _hashed(feature: object, seed: int) -> int:
    if not isinstance(feature, str | bytes):
        raise BadRequest("a feature is text or bytes", field="features", value=feature)
    return xxhash.xxh3_64_intdigest(feature.encode() if isinstance(feature, str) else feature, seed)


def as_keys(value: Any, field: str = "keys") -> tuple[Keys, tuple[int, ...]]:
    """Return keys as they travel, and the shape in which they were given.

    An array of 64-bit integers that is C-contiguous is not copied.

    Args:
        value: an array, a sequence (of sequences) or a single number.
        field: named in errors.

    Returns:
        uint64 of shape (n,), C-contiguous.

    Raises:
        BadRequest: something in it is not a whole number from 0 to 2^64-1, or there are too many.
    """
    array = np.asarray(value) if hasattr(value, "__array__") else _from_sequence(value, field)
    if array.size > MAX_KEYS:
        raise BadRequest(f"at most {MAX_KEYS} keys in one request", field=field, value=array.size)
    if array.dtype.kind not in "iu":
        raise BadRequest(_EXPECTED, field=field, value=array.dtype)
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise BadRequest(_EXPECTED, field=field, value=int(array.min()))
    wide = np.ascontiguousarray(array, "<u8" if array.dtype.kind == "u" else "<i8")
    return wide.reshape(-1).view(np.uint64), array.shape


def _from_sequence(value: object, field: str) -> npt.NDArray[Any]:
    """Return the numbers of a sequence, of which NumPy would make floats, or numbers of what are none."""
    try:
        array = np.array(value, dtype=object)
    except ValueError as error:
        raise BadRequest("keys are an array of one shape", field=field, value=value) from error
    for key in array.flat:
        if not isinstance(key, int | np.integer) or isinstance(key, bool) or not 0 <= key <= _LARGEST:
            raise BadRequest(_EXPECTED, field=field, value=key)
    return array.astype(np.uint64)
