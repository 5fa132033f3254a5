#!/bin/bash
# Boots a real systemd as PID 1 in namespaces of its own, over an overlay of this root: nothing it writes
# stays. Ends when its standard input does. Prints "pid N", N being that systemd's pid here.
# Usage (root): boot.sh FOLDER [SOURCE TARGET] ...   FOLDER: an empty one; each SOURCE is bound to TARGET inside.
set -euo pipefail
if [[ $1 == --inside ]]; then
    folder=$2
    shift 2
    mount -t tmpfs tmpfs "$folder"
    mkdir -p "$folder"/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
    for ((index = 1; index < $#; index += 2)); do
        target=$folder/root/${*:index+1:1}
        mkdir -p "$target"
        mount --bind "${*:index:1}" "$target"
    done
    cd "$folder/root"
    mount -t proc proc proc
    mount --bind proc/sys proc/sys
    mount -o remount,bind,ro proc/sys # else sysctl.d would change the real host
    mount -t tmpfs run run
    mount -t tmpfs tmp tmp
    mount -t sysfs sys sys
    mount --rbind /sys/fs/cgroup sys/fs/cgroup
    mount -t tmpfs dev dev
    for device in null zero full random urandom tty; do
        touch "dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    mkdir dev/shm dev/pts dev/mqueue
    mount -t tmpfs shm dev/shm
    mount -t mqueue mqueue dev/mqueue
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    ip link set lo up 2>/dev/null || true
    export container=test
    exec chroot . /lib/systemd/systemd --system --show-status=no systemd.unit=basic.target
fi
log=$1.log
setsid unshare --mount --pid --fork --ipc --uts --net --cgroup "$0" --inside "$@" >"$log" 2>&1 </dev/null &
unshare=$!
init=
end() {
    [[ -n $init ]] && kill -9 "$init" 2>/dev/null || kill -9 "$unshare" 2>/dev/null || true
    wait "$unshare" 2>/dev/null || true
    rm -f "$log"
}
trap end EXIT
for _ in $(seq 200); do
    init=$(pgrep -P "$unshare" || true)
    if [[ -n $init ]] && nsenter -t "$init" -m -p -u -i -n -C -r -w systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'; then
        echo "pid $init"
        cat >/dev/null # until whoever started us is done, or gone
        exit 0
    fi
    kill -0 "$unshare" 2>/dev/null || break
    sleep 0.05
done
cat "$log" >&2
exit 1
