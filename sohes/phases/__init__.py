# SPDX-License-Identifier: Apache-2.0
"""The three phases, each a plain program."""
