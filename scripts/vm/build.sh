#!/bin/sh
# Makes the virtual machine's disk and kernels and prints the folder they are in; what is there already is left alone.
# The folder's name is a hash over what goes in: this recipe, the images, the Python packages and the samples' packages.
# Needs root, Debian or Ubuntu, and an engine with the images ('make images').
set -eu
# shellcheck source-path=SCRIPTDIR source=settings.sh
. "$(dirname "$0")/settings.sh"

disk_size=8G
packages=systemd-sysv,udev,dbus,linux-image-amd64,initramfs-tools,docker.io,docker-cli,iproute2,python3,python3-venv,e2fsprogs
packages=$packages,procps,util-linux,kmod,ca-certificates,openssh-server,zstd,curl
# Engines of another make, and of a user who is not root.
packages=$packages,podman,crun,netavark,aardvark-dns,nftables,passt,slirp4netns,uidmap,rootlesskit,dbus-user-session
# Not needed by tests that run inside.
not_inside='^(mypy|mypy_extensions|ruff|types-.*|scipy-stubs|optype|numpy-typing-compat)(==|$)'

[ "$(uname -m)" = x86_64 ] || fail "the virtual machine is made for x86_64 alone so far, and this is $(uname -m)"
cd "$checkout"

# The names and ids of the images as the recipes stand now.
images=$("$python" - << 'PYTHON'
import sys
from harness.engine import build
from harness.engine.client import Engine

engine = Engine()
missing = []
for runtime in build.runtimes():
    tag = build.content_tag(runtime, "x86_64")
    found = build.find(engine.docker, tag)
    if found is None:
        missing.append(tag)
    else:
        print(tag, found["Id"])
engine.close()
if missing:
    sys.exit("vm: these images are missing: " + ", ".join(missing) + "; 'make images' builds them")
PYTHON
)
# The database of a sample: inside nothing can be built, as nothing can be downloaded.
database=$(scripts/database.sh image "$python") || fail "the image of the sample's database could not be made"
requirements=$("$python" - << 'PYTHON'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extra = project["optional-dependencies"]
for line in project["dependencies"] + extra["debug"] + extra["dev"]:
    if not line.startswith("lambda-harness"):
        print(line)
PYTHON
)
requirements=$(echo "$requirements" | grep -vE '^(mypy|ruff|types-|scipy-stubs)')
constraints=$(grep -vE "$not_inside" constraints.txt)
samples=$(find sample_functions -maxdepth 2 \( -name package-lock.json -o -name requirements.txt \) -exec sha256sum {} + | sort)
key=$(
    {
        cat scripts/vm/build.sh scripts/samples.sh scripts/photograph.py images/parts.toml
        find scripts/vm/root -type f -exec sha256sum {} + | sort
        printf '%s\n' "$release" "$old_release" "$images" "$database" "$requirements" "$constraints" "$samples"
    } | sha256sum | cut -c 1-16
)
target=$cache/disks/$key
if [ -f "$target/complete" ]; then
    echo "$target"
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "the disk of the virtual machine is made by root alone" "run 'sudo make test-vm'"
install_missing qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs ssh:openssh-client dockerd:docker.io

# One at a time; what a killed one left is nobody's.
mkdir -p "$cache/disks"
exec 9> "$cache/lock"
flock 9
if [ -f "$target/complete" ]; then
    echo "$target"
    exit 0
fi
rm -rf "$cache"/disks/.making-*
made=$(mktemp -d "$cache/disks/.making-XXXXXX")
daemon=""
# shellcheck disable=SC2317  # by the trap
give_back() {
    status=$?
    trap - EXIT INT TERM HUP
    if [ -n "$daemon" ] && kill "$daemon" 2> /dev/null; then
        wait "$daemon" 2> /dev/null || true
    fi
    rm -rf "$made"
    exit "$status"
}
trap give_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
root=$made/root
log=$made/log

say "downloading the Python packages"
mkdir "$made/wheels"
printf '%s\n' "$requirements" > "$made/requirements.txt"
printf '%s\n' "$constraints" > "$made/constraints.txt"
platforms="--platform manylinux2014_x86_64"
for minor in 17 24 26 27 28 31 34 35 36 38 39 40 41; do platforms="$platforms --platform manylinux_2_${minor}_x86_64"; done
# shellcheck disable=SC2086  # several options
loud "$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --python-version 3.13 --implementation cp \
    $platforms --dest "$made/wheels" -r "$made/requirements.txt" -c "$made/constraints.txt"

say "making a Debian $release system"
cat > "$made/customize" << 'HOOK'
#!/bin/sh
# mmdebstrap runs this with the new system's folder.
set -eu
root=$1
# A second kernel, the release before: kernels below 6.12 cannot reset memory.peak.
for file in "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*; do
    [ -s "$file" ] || continue
    sed "s/$RELEASE/$OLD_RELEASE/g" "$file" > "$root/etc/apt/sources.list.d/old-$(basename "$file")"
done
chroot "$root" apt-get update -qq
old=$(chroot "$root" apt-cache search --names-only '^linux-image-6\.1\.0-[0-9]+-amd64$' | sort -V | tail -n 1 | cut -d ' ' -f 1)
[ -n "$old" ]
chroot "$root" apt-get install --yes -qq --no-install-recommends "$old"
rm -f "$root"/etc/apt/sources.list.d/old-*
HOOK
cat > "$made/extract" << 'HOOK'
#!/bin/sh
# Before any package is set up: the initrd is to hold what a disk of QEMU needs and nothing else, so that it unpacks fast.
set -eu
mkdir -p "$1/etc/initramfs-tools/conf.d"
printf 'MODULES=list\nCOMPRESS=zstd\nFSTYPE=ext4\n' > "$1/etc/initramfs-tools/conf.d/vm"
printf 'virtio_pci\nvirtio_blk\next4\n' > "$1/etc/initramfs-tools/modules"
HOOK
chmod 755 "$made/extract" "$made/customize"
export RELEASE=$release OLD_RELEASE=$old_release
loud mmdebstrap --mode=root --variant=minbase --include="$packages" --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --extract-hook="$made/extract" \
    --customize-hook="$made/customize" "$release" "$root"

say "setting it up"
cp -a "$vm_dir/root/." "$root/"
chown -R 0:0 "$root/etc/systemd" "$root/usr/local/sbin"
echo lambda-harness-vm > "$root/etc/hostname"
echo "127.0.0.1 localhost lambda-harness-vm" > "$root/etc/hosts"
# The kernel's command line says what the root is; the disk is no device of one name.
: > "$root/etc/fstab"
: > "$root/etc/machine-id"
echo "d /tmp 1777 root root -" > "$root/etc/tmpfiles.d/tmp.conf"
ssh-keygen -q -t ed25519 -N "" -C "" -f "$made/key"
mkdir -p "$root/root/.ssh"
cp "$made/key.pub" "$root/root/.ssh/authorized_keys"
chmod 700 "$root/root/.ssh"
printf 'UsePAM no\nUseDNS no\nPermitRootLogin prohibit-password\nPrintMotd no\nX11Forwarding no\nHostKey /etc/ssh/ssh_host_ed25519_key\n' \
    > "$root/etc/ssh/sshd_config.d/vm.conf"
rm -f "$root"/etc/ssh/ssh_host_rsa* "$root"/etc/ssh/ssh_host_ecdsa*
# Emulated, each service that starts costs a second or more: what no test needs stays off.
loud chroot "$root" systemctl --quiet enable vm-setup.service ssh.service docker.service vm-podman.service vm-user.service vm-port.socket
loud chroot "$root" systemctl --quiet --global enable vm-docker.service vm-podman.service
loud chroot "$root" systemctl --quiet --global disable podman.socket podman-auto-update.timer
loud chroot "$root" systemctl --quiet disable podman.socket podman.service podman-auto-update.timer podman-restart.service podman-clean-transient.service
loud chroot "$root" systemctl --quiet mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    tmp.mount ldconfig.service systemd-tmpfiles-clean.timer systemd-timesyncd.service systemd-firstboot.service systemd-update-utmp.service \
    systemd-random-seed.service systemd-journal-flush.service systemd-hwdb-update.service \
    systemd-binfmt.service systemd-ask-password-wall.path systemd-pstore.service systemd-user-sessions.service \
    getty@tty1.service serial-getty@ttyS0.service proc-sys-fs-binfmt_misc.automount dev-hugepages.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount modprobe@drm.service modprobe@efi_pstore.service \
    systemd-boot-random-seed.service systemd-networkd.service systemd-networkd.socket systemd-update-done.service \
    sshd-unix-local.socket sshd-vsock.socket
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\n' > "$root/etc/systemd/journald.conf.d/vm.conf"

mkdir -p "$root/var/tmp/wheels"
cp "$made"/wheels/*.whl "$root/var/tmp/wheels/"
cp "$made/requirements.txt" "$made/constraints.txt" "$root/var/tmp/wheels/"
loud chroot "$root" sh -c 'python3 -m venv /opt/venv && /opt/venv/bin/pip install --quiet --no-index --find-links /var/tmp/wheels \
    -r /var/tmp/wheels/requirements.txt -c /var/tmp/wheels/constraints.txt'
rm -rf "$root/var/tmp/wheels" "$made/wheels"
# The checkout comes in at each start; here is only the way to it.
echo "$inner_checkout" > "$root/opt/venv/lib/python3.13/site-packages/lambda_harness.pth"
printf '#!/bin/sh\nexec /opt/venv/bin/python -m harness "$@"\n' > "$root/opt/venv/bin/lambda-harness"
chmod 755 "$root/opt/venv/bin/lambda-harness"

# Inside nothing can be downloaded: the parts and the samples' packages lie in the cache of the user there.
scripts/samples.sh "$python" || fail "the packages of the sample functions could not be made"
own=$(dirname "$("$python" -c 'from harness.engine.parts import rie_binary; print(rie_binary("x86_64"))')")
loud chroot "$root" useradd --create-home --uid "$inner_uid" "$inner_user"
for home in root "home/$inner_user"; do
    mkdir -p "$root/$home/.cache/lambda-harness/parts"
    cp -a "$own"/*-aws-lambda-rie "$root/$home/.cache/lambda-harness/parts/"
    for folder in "$own"/relay-x86_64-*; do
        [ ! -d "$folder" ] || cp -a "$folder" "$root/$home/.cache/lambda-harness/parts/"
    done
done
chown -R "$inner_uid:$inner_uid" "$root/home/$inner_user"
find sample_functions \( -name node_modules -o -name python -o -name picture \) -prune -print0 \
    | tar --null -T - -cf - | { mkdir -p "$root$inner_checkout" && tar -xf - -C "$root$inner_checkout"; }

say "laying the images into it"
socket=$made/docker.sock
# In a network of its own: without a bridge a dockerd removes docker0, which is that of the machine's own engine.
unshare --net dockerd --data-root "$root/var/lib/docker" --exec-root "$made/exec" --pidfile "$made/docker.pid" -H "unix://$socket" \
    --bridge=none --iptables=false --ip6tables=false --storage-driver overlay2 > "$made/dockerd.log" 2>&1 9>&- &
daemon=$!
waited=0
until DOCKER_HOST=unix://$socket docker version > /dev/null 2>&1; do
    if [ $waited -ge 60 ] || ! kill -0 $daemon 2> /dev/null; then
        tail -n 20 "$made/dockerd.log" >&2
        fail "the engine that lays the images into the disk does not come up; the end of its log is above"
    fi
    sleep 1
    waited=$((waited + 1))
done
# shellcheck disable=SC2046  # several images
docker save $(echo "$images" | cut -d ' ' -f 1) > "$made/images.tar"
loud docker -H "unix://$socket" load -i "$made/images.tar"
# shellcheck disable=SC2086  # two images
docker save $database | docker -H "unix://$socket" load > /dev/null
kill $daemon
wait $daemon || true
daemon=""
rm -rf "$made/exec" "$root/var/lib/docker/runtimes"
# Engines with a store of their own load them when the machine starts.
mkdir -p "$root/var/lib/lambda-harness"
mv "$made/images.tar" "$root/var/lib/lambda-harness/images.tar"

say "making the disk"
for kind in new old; do
    pattern='vmlinuz-6.1.0-*'
    [ $kind = old ] || pattern='vmlinuz-6.1[2-9]*'
    kernel=$(find "$root/boot" -name "$pattern" | sort -V | tail -n 1)
    [ -n "$kernel" ] || fail "the system has no kernel $pattern"
    cp "$kernel" "$made/vmlinuz-$kind"
    cp "$(dirname "$kernel")/initrd.img-${kernel##*/vmlinuz-}" "$made/initrd-$kind"
done
rm -rf "${root:?}"/boot/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
loud mkfs.ext4 -q -F -L lambda-harness -E lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$made/disk" "$disk_size"
rm -rf "$root" "$made/extract" "$made/customize" "$made/requirements.txt" "$made/constraints.txt" "$log" "$made/dockerd.log" "$made/docker.pid"
echo "$images" | cut -d ' ' -f 1 > "$made/images"
date -u +%Y-%m-%dT%H:%M:%SZ > "$made/complete"
chmod 755 "$made"
mv -T "$made" "$target"
trap - EXIT
# Disks of recipes of another time are in nobody's use but a running machine's, which holds its file open.
for folder in "$cache"/disks/*; do
    [ "$folder" = "$target" ] || rm -rf "$folder"
done
echo "$target"
