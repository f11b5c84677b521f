"""Figures of a classifier from its confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One class: P = right / said, R = right / true, F1 = 2PR / (P + R); 0 where a denominator is."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int  # how many are of this class


def confusion(true: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """(C, C): how often the class of the row was said to be that of the column."""
    return np.bincount(true.astype(np.int64) * classes + said, minlength=classes * classes).reshape(classes, classes)


def f1(right: np.ndarray, said: np.ndarray, true: np.ndarray) -> np.ndarray:
    """F1 of each class (C,), from how many were right, said and true."""
    return 2 * right / np.maximum(said + true, 1)


def macro_f1(right: np.ndarray, said: np.ndarray, true: np.ndarray) -> float:
    """The mean of F1 over the classes that occur or were said."""
    there = said + true > 0
    return float(f1(right, said, true)[there].mean()) if there.any() else 0.0


def report(matrix: np.ndarray, labels: list[str]) -> list[Row]:
    """A row a class."""
    right, said, true = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    precision = right / np.maximum(said, 1)
    recall = right / np.maximum(true, 1)
    figures = zip(labels, precision, recall, f1(right, said, true), true, strict=True)
    return [Row(label, float(p), float(r), float(f), int(n)) for label, p, r, f, n in figures]
