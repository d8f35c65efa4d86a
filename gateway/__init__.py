"""Tempera's gateway: presets with guarded temperature in front of stock engines."""

from gateway.compiled import use

use()
