#!/bin/sh
# Waits inside a sandbox for its program, where the image has no interpreter of its own to wait in.
#
# Says R on descriptor 3 when it waits. Then comes a tar archive: `tmp/launch`, a script of the host's with every word quoted,
# and `work/`, the program's files. The script sets the limits, closes descriptor 3 and becomes the program, after G was said.
# A failure before that is told as E. Nothing of the caller's runs before the descriptor is closed.
printf R >&3
cd / || exit 70
if ! error=$(tar --extract --no-same-owner --no-same-permissions --read-full-records --file=- <&3 2>&1); then
    printf 'E%.1000s' "$error" >&3
    exit 70
fi
. /tmp/launch
