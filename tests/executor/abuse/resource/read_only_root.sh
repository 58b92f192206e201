#: tries = "writing anywhere else"
#: stdout = "done\n"
for folder in / /bin /etc /home /lib /opt /root /sbin /srv /usr /usr/bin /usr/lib /var /var/tmp /run /proc /sys /dev /mnt /media /boot; do
    if (: > "$folder/written") 2>/dev/null; then echo "wrote to $folder"; fi
done
(: >> /etc/passwd) 2>/dev/null && echo "appended to /etc/passwd"
rm -rf /usr/lib /etc /bin 2>/dev/null
mv /bin/bash /tmp/bash 2>/dev/null && echo "moved bash"
chmod 777 /etc 2>/dev/null && echo "changed /etc"
ln /etc/passwd /tmp/hard 2>/dev/null && echo "hard link"
echo done
