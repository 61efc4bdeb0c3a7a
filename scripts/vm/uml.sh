#!/bin/sh
# Makes Linux as a program (User Mode Linux) and prints its path; what is there already is left alone. It needs neither KVM nor an
# emulated processor: functions compute at this processor's speed, system calls and page faults are some ten times as slow.
# The source is the distribution's newest, its signature checked by apt. Needs root, Debian or Ubuntu; a quarter of an hour on 2 CPUs.
set -eu
# shellcheck source-path=SCRIPTDIR source=settings.sh
. "$(dirname "$0")/settings.sh"

key=$(cat "$vm_dir/uml.sh" "$vm_dir/uml.config" | sha256sum | cut -c 1-16)
target=$cache/kernels/$key
if [ -x "$target/linux-uml" ]; then
    echo "$target/linux-uml"
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "the source of the kernel is fetched by root alone" "run it with sudo"
install_missing mmdebstrap:mmdebstrap gcc:gcc make:make flex:flex bison:bison bc:bc xz:xz-utils dpkg-deb:dpkg ethtool:ethtool

# One at a time; what a killed one left is nobody's.
mkdir -p "$cache/kernels"
exec 9> "$cache/kernels/lock"
flock 9
if [ -x "$target/linux-uml" ]; then
    echo "$target/linux-uml"
    exit 0
fi
rm -rf "$cache"/kernels/.making-*
made=$(mktemp -d "$cache/kernels/.making-XXXXXX")
# shellcheck disable=SC2317  # by the trap
give_back() {
    status=$?
    trap - EXIT INT TERM HUP
    rm -rf "$made"
    exit "$status"
}
trap give_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
log=$made/log

say "downloading the kernel's source"
cat > "$made/fetch" << 'HOOK'
#!/bin/sh
# mmdebstrap runs this with the folder of a system that has little more than apt.
set -eu
root=$1
# The newest kernel is where newer packages for the release are.
sed -n "s/^\\(deb .*\\) $RELEASE main\$/\\1 $RELEASE-backports main/p" "$root/etc/apt/sources.list" > "$root/etc/apt/sources.list.d/new.list"
[ -s "$root/etc/apt/sources.list.d/new.list" ]
chroot "$root" apt-get update -qq
source=$(chroot "$root" apt-cache search --names-only '^linux-source-[0-9.]+$' | cut -d ' ' -f 1 | sort -V | tail -n 1)
[ -n "$source" ]
cd "$root/var/tmp"
chroot "$root" sh -c "cd /var/tmp && apt-get download -qq $source"
HOOK
chmod 755 "$made/fetch"
export RELEASE="$release"
loud mmdebstrap --mode=root --variant=apt --aptopt='Acquire::Languages "none"' --aptopt='APT::Sandbox::User "root"' \
    --customize-hook="$made/fetch" "$release" "$made/root"
loud dpkg-deb -x "$made"/root/var/tmp/linux-source-*.deb "$made/package"
mkdir "$made/source"
loud tar -xf "$made"/package/usr/src/linux-source-*.tar.xz -C "$made/source" --strip-components 1
rm -rf "$made/root" "$made/package"

say "making Linux $(make -s -C "$made/source" kernelversion)"
cd "$made/source"
# Its scheduler's clock is that of the ticks, so CPU time and quotas would be worth 10 ms and no less.
cat >> arch/um/kernel/time.c << 'SOURCE'

#ifndef CONFIG_UML_TIME_TRAVEL_SUPPORT
notrace unsigned long long sched_clock(void)
{
	static long long boot;

	if (!boot)
		boot = os_nsecs();
	return os_nsecs() - boot;
}
#endif
SOURCE
loud make ARCH=um defconfig
loud scripts/kconfig/merge_config.sh -m .config "$vm_dir/uml.config"
loud make ARCH=um olddefconfig
grep -o '^CONFIG_[A-Z0-9_]*=y' "$vm_dir/uml.config" | while IFS= read -r wanted; do
    grep -q "^$wanted$" .config || fail "this kernel has no $wanted" "scripts/vm/uml.config asks for it"
done
loud make ARCH=um -j "$(nproc)" linux
mkdir "$made/result"
cp linux "$made/result/linux-uml"
mv -T "$made/result" "$target"
for folder in "$cache"/kernels/*; do
    [ "$folder" = "$target" ] || [ ! -d "$folder" ] || rm -rf "$folder"
done
echo "$target/linux-uml"
