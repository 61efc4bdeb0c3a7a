#!/bin/sh
# Boots the virtual machine and comes back when its engine answers. The disk is not changed: each start has a fresh one.
#   start.sh [--kernel new|old|uml] [--driver systemd|cgroupfs] [--engine docker|podman|docker-rootless|podman-rootless]
set -eu
# shellcheck source-path=SCRIPTDIR source=settings.sh
. "$(dirname "$0")/settings.sh"

while [ $# -gt 0 ]; do
    machine_option "$1" "${2:-}" || fail "'$1' is no option of start.sh" "the head of $0 has them all"
    [ $# -ge 2 ] || fail "$1 needs a value"
    shift 2
done
case $kernel in
    new | old) ;;
    # It is no machine with the processor of this one, but needs a network card that only root can make.
    uml) [ "$(id -u)" = 0 ] || fail "--kernel uml needs root for its network card" "run it with sudo" ;;
    *) fail "--kernel is 'new' (6.12), 'old' (6.1) or 'uml' (the newest, as a program), not '$kernel'" ;;
esac
case $driver in systemd | cgroupfs) ;; *) fail "--driver is 'systemd' or 'cgroupfs', not '$driver'" ;; esac

socket=$(engine_socket "$engine")
attempt=${LAMBDA_HARNESS_VM_ATTEMPT:-1}

if is_running; then
    fail "a virtual machine runs already, process $running" "'scripts/vm/stop.sh' ends it; LAMBDA_HARNESS_VM_STATE and the two ports make room for another"
fi
disk=$("$vm_dir/build.sh")
program=""
[ "$kernel" != uml ] || program=$("$vm_dir/uml.sh")
rm -rf "$state"
mkdir -p "$(dirname "$state")"
mkdir -m 700 "$state"
pid=""
# shellcheck disable=SC2317  # by the trap
give_back() {
    status=$?
    trap - EXIT INT TERM HUP
    [ -z "$pid" ] || kill "$pid" 2> /dev/null || true
    remove_card
    rm -f "$state/pid"
    exit "$status"
}
trap give_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
cp "$disk/key" "$state/key"
chmod 600 "$state/key"
echo "$kernel $driver $engine" > "$state/kind"

# A swap that no limit keeps anybody from hides out-of-memory kills: with one, a test can tell.
truncate --size 1G "$state/swap"
words="rw quiet net.ifnames=0 mitigations=off systemd.show_status=no"
words="$words vm.driver=$driver vm.engine=$engine vm.socket=$socket vm.ports=$first_port-$last_port"
# Either way the process must not hold on to the caller's pipes, nor get its terminal's Ctrl-C.
if [ "$kernel" = uml ]; then
    say "starting Linux as a program ($driver driver, $engine)"
    began=$(date +%s)
    remove_card
    ip link add "$card" type veth peer name "${card}i"
    ip address add "$net.2/24" dev "$card"
    ip link set "$card" up
    ip link set "${card}i" up
    # The program takes frames as they are on a wire: none that a card was to cut up, or to sum up.
    for end in "$card" "${card}i"; do
        ethtool --offload "$end" tx off rx off tso off gso off gro off > /dev/null
    done
    # One processor: with several, threads of one process still run one at a time, and a processor that waits for them spins.
    # shellcheck disable=SC2086  # several words
    setsid "$program" umid=machine uml_dir="$state/uml" mem="$memory" ncpus=1 root=/dev/ubda init=/sbin/init $words "vm.net=$net" \
        "ubd0=$state/changes,$disk/disk" "ubd1=$state/swap" "vec0:transport=raw,ifname=${card}i,depth=64" con=null con0=null,fd:1 \
        > "$state/console" 2>&1 < /dev/null 3>&- 4>&- 5>&- &
else
    # A /dev/kvm that opens may still run no Linux (a virtual machine without nesting): this kernel, without a disk, panics
    # at once where it does run.
    accelerator=tcg,thread=multi
    model=max
    if [ -w /dev/kvm ]; then
        timeout 20 qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine pc -accel kvm -cpu host -m 512 \
            -serial "file:$state/kvm" -kernel "$disk/vmlinuz-$kernel" -append "console=ttyS0 panic=-1" > /dev/null 2>&1 < /dev/null || true
        if grep -q "Kernel panic" "$state/kvm" 2> /dev/null; then
            accelerator=kvm
            model=host
        fi
    fi
    say "starting Linux ($kernel kernel, $driver driver, $engine) under $accelerator"
    began=$(date +%s)
    forwards=""
    port=$first_port
    while [ "$port" -le "$last_port" ]; do
        forwards="$forwards,hostfwd=tcp:127.0.0.1:$port-:$port"
        port=$((port + 1))
    done
    setsid qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine pc -name lambda-harness \
        -accel "$accelerator" -cpu "$model" -smp "$cpus" -m "$memory" \
        -kernel "$disk/vmlinuz-$kernel" -initrd "$disk/initrd-$kernel" \
        -append "root=/dev/vda rootflags=noatime console=ttyS0 panic=-1 random.trust_cpu=on $words" \
        -drive "file=$disk/disk,format=raw,if=virtio,snapshot=on,cache=unsafe" \
        -drive "file=$state/swap,format=raw,if=virtio,cache=unsafe,discard=unmap" \
        -netdev "user,id=net,hostfwd=tcp:127.0.0.1:$engine_port-:2375,hostfwd=tcp:127.0.0.1:$ssh_port-:22$forwards" \
        -device virtio-net-pci,netdev=net,romfile= \
        -object rng-random,filename=/dev/urandom,id=rng -device virtio-rng-pci,rng=rng \
        -serial "file:$state/console" -monitor "unix:$state/monitor,server=on,wait=off" \
        > "$state/qemu.log" 2>&1 < /dev/null 3>&- 4>&- 5>&- &
fi
pid=$!
echo "$pid" > "$state/pid"

# The connection stays in the background and must not hold on to the caller's pipes.
connect() {
    vm_ssh -f -N -o ControlMaster=yes "$@" < /dev/null > "$state/ssh.log" 2>&1
}
# QEMU forwards the ports by itself.
connect_to_program() {
    set -- -L "127.0.0.1:$engine_port:127.0.0.1:2375" -L "127.0.0.1:$ssh_port:127.0.0.1:22"
    port=$first_port
    while [ "$port" -le "$last_port" ]; do
        set -- "$@" -L "127.0.0.1:$port:127.0.0.1:$port"
        port=$((port + 1))
    done
    connect -o ExitOnForwardFailure=yes "$@" -p 22 "root@$net.15"
}

while [ $(($(date +%s) - began)) -lt "$boot_wait_s" ]; do
    if ! kill -0 "$pid" 2> /dev/null; then
        # Seldom, an emulated kernel with two processors trips over its own code while it patches it.
        if grep -q "Kernel panic" "$state/console" && [ "$attempt" -lt 3 ]; then
            say "the kernel panicked while it booted; trying again"
            LAMBDA_HARNESS_VM_ATTEMPT=$((attempt + 1)) exec "$0" --kernel "$kernel" --driver "$driver" --engine "$engine"
        fi
        tail -n 5 "$state/console" >&2 || true
        tail -n 5 "$state/qemu.log" >&2 2> /dev/null || true
        fail "the virtual machine ended while it booted; the end of its console is above"
    fi
    if [ "$kernel" = uml ] && [ ! -S "$state/ssh" ] && ! connect_to_program; then
        sleep 1
        continue
    fi
    # An engine with a store of its own may answer while it still loads the images.
    # shellcheck disable=SC2046  # several images
    if found=$("$python" - "tcp://127.0.0.1:$engine_port" $(cat "$disk/images") 2> /dev/null << 'PYTHON'
import sys
import docker
client = docker.DockerClient(base_url=sys.argv[1], timeout=20)
info = client.info()
for image in sys.argv[2:]:
    client.images.get(image)
print(info["ServerVersion"], "on", info["KernelVersion"] + ", cgroup v" + info["CgroupVersion"] + ",", info["CgroupDriver"], "driver")
PYTHON
    ); then
        [ -S "$state/ssh" ] || connect -p "$ssh_port" root@127.0.0.1 \
            || fail "the engine answers, but ssh does not get into the virtual machine"
        trap - EXIT INT TERM HUP
        say "$engine $found answers at tcp://127.0.0.1:$engine_port after $(($(date +%s) - began)) s"
        exit 0
    fi
    sleep 2
done
tail -n 20 "$state/console" >&2 || true
tail -n 5 "$state/ssh.log" >&2 2> /dev/null || true
fail "no engine answers in the virtual machine after $boot_wait_s s; the end of its console is above"
