#!/usr/bin/env bash
# Installs the programs that the tests drive, as far as they are missing. Only
# root on a Debian-like system can; anywhere else it says what is missing and
# succeeds, and the tests that need it are skipped by name.
set -euo pipefail

# program:package, in Debian 12's names. The compiler is for the race detector.
wanted=(
	docker-registry:docker-registry containerd:containerd runc:runc dockerd:docker.io docker:docker.io
	podman:podman skopeo:skopeo aria2c:aria2 nginx:nginx-light gcc:gcc
	chromium:chromium node:nodejs npm:npm mkfs.ext4:e2fsprogs systemd-analyze:systemd
)
PATH=$PATH:/usr/sbin:/sbin

missing=() packages=()
for pair in "${wanted[@]}"; do
	if ! command -v "${pair%%:*}" >/dev/null; then
		missing+=("${pair%%:*}")
		packages+=("${pair##*:}")
	fi
done
if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi
echo "missing for the tests: ${missing[*]}"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "only root with apt-get can install them; tests that need them are skipped"
	exit 0
fi

# The packages are for the tests, which start each program themselves: keep
# apt from starting services, unless the machine has a policy of its own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
apt="apt-get -q -o DPkg::Lock::Timeout=300"
# gcc alone comes without libc's headers; podman's netns tools and the
# registries' certificates are only recommended.
if $apt update && $apt install -y --no-install-recommends "${packages[@]}" libc6-dev ca-certificates; then
	exit 0
fi
echo "apt-get could not install them; tests that need them are skipped"
