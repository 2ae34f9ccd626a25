# SPDX-License-Identifier: Apache-2.0
"""Benchmark data sets in their official layouts, each read as images with class-agnostic entities.

`registry.open_dataset` opens one by name, `convert.convert_dataset` writes it as COCO JSON for the evaluator.
`docs/datasets.md` describes each layout and which annotations count.
"""
