#: tries = "filling every place that can be written"
#: stdout = "/work full\n/tmp full\n/dev/shm full\n"
#: limits = { disk_bytes = 4194304 }
for folder in /work /tmp /dev/shm; do
    head -c 16777216 /dev/zero > "$folder/big" 2>/dev/null || echo "$folder full"
    rm -f "$folder/big"
done
