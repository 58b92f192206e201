#: tries = "finding tools, package managers or caches in the image that tell how it was made"
#: stdout = "done\n"
for tool in apt apt-get dpkg curl wget nc ssh gcc docker runsc sudo su; do
    command -v "$tool" >/dev/null && case "$tool" in su) ;; *) echo "there is $tool" ;; esac
done
ls /var/log 2>/dev/null | head -3
ls /build /crucible /root 2>/dev/null | head -3
echo done
