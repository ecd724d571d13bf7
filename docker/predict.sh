#!/bin/sh
# The challenge's call: every scan in /workspace/inputs, CASE_0000.nii.gz, to /workspace/outputs/CASE.nii.gz.
# For tests and other layouts: predict.sh INPUTS OUTPUTS, and the model's folder in SEMISEG_MODEL.
set -eu
inputs=${1:-/workspace/inputs}
outputs=${2:-/workspace/outputs}
model=${SEMISEG_MODEL:-/opt/semiseg/model}

# Into a folder beside, so that a second call takes the place of the first.
mkdir -p "$outputs"
made=$(mktemp -d "$outputs/.semiseg-XXXXXX")
trap 'rm -rf "$made"' EXIT
status=0
semiseg predict "$model" "$inputs" --output "$made" --engine "${SEMISEG_ENGINE:-auto}" || status=$?
# Label maps only: what became of each scan has been printed.
find "$made" -maxdepth 1 -name '*.nii.gz' -exec mv -f {} "$outputs" \;
exit $status
