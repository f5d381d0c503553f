# A real systemd as process 1 of its own namespaces. Sourced by nothing: `unshare ... bash -eu` runs it; see systemd_sandbox.py.
# Variables: SRC (this checkout), PACKAGES (site-packages), PYTHON_HOME, PYTHON (its file name), HOME_DIR (the alignd home),
# UNITS (a folder of units), LOG (a file), CANARY (a file in the real /tmp).
hide() { mount -t tmpfs -o "mode=$2" tmpfs "$1"; }
show() { mkdir -p "$2"; mount --bind "$1" "$2"; }
freeze() { mount -o remount,bind,ro "$1"; }

umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t proc proc /proc
disks=$(findmnt -rno TARGET -t ext4,xfs,btrfs,overlay,9p,virtiofs,zfs,fuse)

# what the service needs, kept aside before everything writable is hidden
hide /srv 755
show "$SRC" /srv/src
show "$PACKAGES" /srv/packages
show "$PYTHON_HOME" /srv/python
show "$HOME_DIR" /srv/home
show "$UNITS" /srv/units
touch /srv/log
mount --bind "$LOG" /srv/log
for folder in /run /var/lib /var/log /var/cache /home /root /opt; do hide "$folder" 755; done
for folder in /tmp /var/tmp; do hide "$folder" 1777; done
for disk in $disks; do freeze "$disk" 2>/dev/null || true; done

# an installation as the documentation describes it, in /opt/alignd
show /srv/python /opt/python
show /srv/src /opt/alignd/src
show /srv/packages /opt/alignd/packages
for folder in /opt/python /opt/alignd/src /opt/alignd/packages /srv/src /srv/packages /srv/python; do freeze "$folder"; done
version=$(basename "$(dirname "$PACKAGES")")
mkdir -p /opt/alignd/bin "/opt/alignd/lib/$version/site-packages"
ln -s "/opt/python/bin/$PYTHON" /opt/alignd/bin/python
echo "home = /opt/python/bin" > /opt/alignd/pyvenv.cfg
printf '/opt/alignd/src\n/opt/alignd/packages\n' > "/opt/alignd/lib/$version/site-packages/alignd.pth"
printf '#!/opt/alignd/bin/python\nimport sys\nfrom daemon.cli import main\nsys.exit(main())\n' > /opt/alignd/bin/alignd
chmod 755 /opt/alignd/bin/alignd
show /srv/home /var/lib/alignd
show /srv/units /run/units

# the account that sysusers would make
cp /etc/passwd /etc/group /run
echo 'alignd:x:990:990::/var/lib/alignd:/usr/sbin/nologin' >> /run/passwd
echo 'alignd:x:990:' >> /run/group
mount --bind /run/passwd /etc/passwd
mount --bind /run/group /etc/group

mkdir /srv/dev
mount -t tmpfs -o mode=755 tmpfs /srv/dev
for node in null zero full random urandom tty; do touch "/srv/dev/$node"; mount --bind "/dev/$node" "/srv/dev/$node"; done
mkdir /srv/dev/pts /srv/dev/shm /srv/dev/hugepages
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts /srv/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /srv/dev/shm
ln -s pts/ptmx /srv/dev/ptmx
ln -s /proc/self/fd /srv/dev/fd
touch /srv/dev/console
mount --bind /srv/log /srv/dev/console
mount --rbind /srv/dev /dev
hide /srv 755
mount --bind /proc/sys /proc/sys
freeze /proc/sys
freeze /sys
mkdir -p /run/systemd/system

# the guard: nothing of the machine may be in reach, or systemd's own jobs would empty and change it
for place in / /usr /etc /proc/sys; do
    if (: > "$place/.alignd-guard") 2>/dev/null; then echo "guard: $place can be written"; exit 99; fi
done
if [ -e "$CANARY" ]; then echo "guard: the real /tmp is visible"; exit 99; fi
case $(stat -f -c %T /tmp) in tmpfs) ;; *) echo "guard: /tmp is no tmpfs"; exit 99 ;; esac
if [ $$ != 1 ]; then echo "guard: not process 1"; exit 99; fi

exec env -i container=x SYSTEMD_UNIT_PATH=/run/units PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=only.target --log-target=console --log-level=info
