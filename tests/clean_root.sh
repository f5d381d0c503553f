# A root of its own for a package: this machine's /usr under an overlay, all else new and in memory. Sourced by nothing:
# `unshare ... bash -eu` runs it; see clean_root.py. Variables: PLACE (an empty folder), GIVEN (a folder that is /srv/given),
# PACKAGES (one that is /srv/packages), STATUS (dpkg's file of what is installed), CANARY (a file in the real /tmp).
show() { mkdir -p "$2"; mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; }

mount -t tmpfs -o mode=755 root "$PLACE"
cd "$PLACE"
mkdir usr etc var tmp dev proc run srv root opt home old .upper .work
chmod 1777 tmp
mount -t overlay -o "lowerdir=/usr,upperdir=$PLACE/.upper,workdir=$PLACE/.work" overlay usr
for name in bin sbin lib lib32 lib64 libx32; do if [ -L "/$name" ]; then ln -s "usr/$name" "$name"; fi; done
mkdir -p var/lib/dpkg/info var/lib/dpkg/updates var/lib/dpkg/triggers var/log var/cache var/tmp
cp "$STATUS" var/lib/dpkg/status
sed -n 's/^Package: //p' "$STATUS" | while read -r name; do : > "var/lib/dpkg/info/$name.list"; done
echo 'root:x:0:0:root:/root:/bin/sh' > etc/passwd
echo 'root:x:0:' > etc/group
cp -a /etc/ld.so.cache /etc/ld.so.conf /etc/ld.so.conf.d etc 2>/dev/null || true
if [ -e /etc/alternatives ]; then cp -a /etc/alternatives etc; fi
show "$GIVEN" srv/given
show "$PACKAGES" srv/packages
mount -t proc proc proc
for node in null zero full random urandom tty; do touch "dev/$node"; mount --bind "/dev/$node" "dev/$node"; done
pivot_root . old
umount -l /old

# the guard: nothing of the machine may be in reach
if [ -e "$CANARY" ]; then echo "guard: the real /tmp is visible"; exit 99; fi
case $(stat -f -c %T /) in tmpfs) ;; *) echo "guard: / is no tmpfs"; exit 99 ;; esac
case $(stat -f -c %T /usr) in overlay*) ;; *) echo "guard: /usr is no overlay"; exit 99 ;; esac
if [ "$(ls -A /old)" ]; then echo "guard: the old root is still there"; exit 99; fi
touch /run/ready
exec sleep infinity
