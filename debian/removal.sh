# shellcheck shell=sh
# Functions for the prerm scripts of niso's packages, which have sourced debconf's confmodule.
# Standard output belongs to debconf then, so all output here goes to standard error.

# Print the names of services, with their owner: niso, or for an attachment the program that made it.
niso_services() {
	niso ps --json 2> /dev/null | python3 -IS -c '
import json, subprocess, sys
for row in json.load(sys.stdin):
    if row["status"] == "inactive":
        continue
    owner = "niso"
    if row["mode"] == "attached":
        shown = subprocess.run(("niso", "inspect", "--json", row["service"]), stdout=-1)
        owner = json.loads(shown.stdout or "{}").get("attached", {}).get("owner", "")
    print(owner, row["service"])
' 2> /dev/null || :
}

# Print the networks that an engine has with the driver niso. $1: docker or podman
engine_networks() {
	"$1" network ls --filter driver=niso --format '{{.Name}}' 2> /dev/null || :
}

# Print the containers on a network. $1: docker or podman, $2: the network
engine_containers() {
	case $1 in
	docker) docker network inspect -f '{{range $id, $_ := .Containers}}{{$id}} {{end}}' "$2" ;;
	podman) podman ps -a --filter "network=$2" --format '{{.Names}}' ;;
	esac 2> /dev/null || :
}

# Print what uses niso. $1: docker, podman or cni; or niso for all that is active
uses() {
	niso ps > /dev/null 2>&1 || echo "unknown, because niso ps fails"
	case $1 in
	docker | podman)
		engine_networks "$1" | sed 's/^/network /'
		;;
	esac
	if [ "$1" = niso ]; then
		niso_services | sed 's/^niso /service /'
	else
		niso_services | sed -n "s/^$1 /container /p"
	fi
}

# Disconnect all containers of an engine, and remove its networks of niso. $1: docker or podman
clear_engine() {
	for network in $(engine_networks "$1"); do
		for container in $(engine_containers "$1" "$network"); do
			"$1" network disconnect -f "$network" "$container" >&2 || :
		done
		"$1" network rm "$network" >&2 || return 1
	done
}

# Disconnect all that uses niso. $1: as in uses. Return 1 if the package must stay.
clear_uses() {
	case $1 in
	docker | podman) clear_engine "$1" || return 1 ;;
	niso)
		enabled=$(niso ps --json | python3 -IS -c '
import json, subprocess, sys
for row in json.load(sys.stdin):
    shown = subprocess.run(("niso", "inspect", "--json", row["service"]), stdout=-1)
    if json.loads(shown.stdout or "{}").get("enabled"):
        print(row["service"])
') || enabled=
		# shellcheck disable=SC2086 # names have no spaces
		[ -z "$enabled" ] || niso disable $enabled >&2 || :
		# its drop-ins call niso when another firewall has loaded its rules
		niso firewall disable >&2 || :
		niso deactivate --all >&2 || :
		for name in $(niso_services | cut -d' ' -f2); do
			niso net detach "$name" >&2 || :
		done
		niso reset --yes >&2
		return
		;;
	esac
	niso net gc --owner "$1" --valid '' >&2
}

# Ask whether all that uses a package may be disconnected, and disconnect it; exit 1 if it may not.
# $1: as in uses, $2: the package
before_removal() {
	command -v niso > /dev/null || return 0
	# a chroot has the kernel and the network of its host
	if ischroot 2> /dev/null; then
		return 0
	fi
	if [ "$1" = docker ] && command -v docker > /dev/null && ! docker version > /dev/null 2>&1 &&
		[ -n "$(ls -A /var/lib/niso/docker 2> /dev/null)" ]; then
		echo "$2: not removed: Docker has networks of niso, and can remove them only while dockerd" >&2
		echo "  and niso-docker run. dockerd does not answer: systemctl start docker" >&2
		exit 1
	fi
	used=$(uses "$1" | paste -sd, | sed 's/,/, /g')
	if [ -n "$used" ]; then
		db_subst "$2/disconnect" used "$used"
		db_input critical "$2/disconnect" || :
		db_go || :
		db_get "$2/disconnect"
		if [ "$RET" != true ]; then
			db_fset "$2/disconnect" seen false
			echo "$2: not removed, because it is in use: $used" >&2
			echo "  The page Uninstall of niso's guide shows how to remove these, or to let $2" >&2
			echo "  do so by the debconf answer $2/disconnect." >&2
			exit 1
		fi
	fi
	if [ -n "$used" ] || [ "$1" = niso ]; then
		clear_uses "$1" || {
			echo "$2: not removed, because of the error above" >&2
			exit 1
		}
	fi
	if [ "$1" = cni ]; then
		# shellcheck disable=SC2013 # file names without spaces
		for file in $(grep -ls niso-cni /etc/cni/net.d/*); do
			echo "$2: $file names niso-cni, which no longer exists" >&2
		done
	fi
}
