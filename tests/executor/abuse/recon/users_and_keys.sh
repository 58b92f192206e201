#: tries = "keys, secrets and homes"
#: stdout = "done\n"
for file in /etc/shadow /root/.ssh/id_rsa /root/.bash_history /home/*/.ssh/id_rsa /etc/ssh/ssh_host_rsa_key /var/run/secrets/kubernetes.io/serviceaccount/token /root/.aws/credentials /root/.docker/config.json; do
    [ -r "$file" ] && echo "$file can be read"
done
find / -xdev \( -name '*.pem' -o -name 'id_rsa*' -o -name '*.key' -o -name 'credentials' \) -readable 2>/dev/null | grep -v '^/usr/share\|^/etc/ssl/certs\|^/usr/lib/python3\|^/proc' | head
echo done
