#!/bin/busybox sh
# The first process of the virtual machine. Mounts the root of the machine that started it, with a
# layer of memory above it so that nothing is written there, and runs the script that the kernel's
# command line names (glb.script=PATH) inside.
bb=/bin/busybox
fail() { echo "init: $*"; $bb poweroff -f; }

$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
for module in virtio_pci 9pnet_virtio 9p overlay; do
    $bb modprobe $module || fail "cannot load the module $module"
done
share() { $bb mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" || fail "cannot mount $1"; }
share hostroot /lower ro,cache=loose
$bb mount -t tmpfs -o size=80% tmpfs /upper
$bb mkdir /upper/files /upper/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root || fail "cannot mount the root"

$bb mount -t proc proc /root/proc
$bb mount -t sysfs sys /root/sys
$bb mount -t devtmpfs dev /root/dev
$bb mkdir -p /root/dev/pts /root/dev/shm /root/lib/modules /root/mnt/results
$bb mount -t devpts devpts /root/dev/pts
for place in /root/dev/shm /root/tmp /root/run; do $bb mount -t tmpfs tmpfs $place; done
$bb mount -t bpf bpf /root/sys/fs/bpf
$bb mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
share results /root/mnt/results rw
share modules /root/lib/modules ro
# The kernel loads further modules by /sbin/modprobe, which runs in this root and not in the one below.
$bb mkdir -p /sbin
$bb ln -s /bin/busybox /sbin/modprobe
$bb mount --bind /root/lib/modules /lib/modules
$bb cp $bb /root/run/busybox
$bb ln -s busybox /root/run/modprobe
$bb ip link set lo up

for word in $($bb cat /proc/cmdline); do
    case $word in glb.script=*) script=${word#glb.script=} ;; esac
done
$bb chroot /root /bin/bash "$script" > /root/mnt/results/output 2>&1
echo "$?" > /root/mnt/results/exit
$bb sync
$bb poweroff -f
