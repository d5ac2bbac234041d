# Runs checks in the virtual machine. The file /mnt/results/checks has a line for each: a number, the
# folder to run it in, and the command. Writes NUMBER.log with the output and NUMBER.result with the
# exit status and the seconds.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
results=/mnt/results

# tun has no node below /dev before its module is loaded.
for module in tun veth virtio_net; do /run/modprobe $module; done

# The programs of director and backend run natively on a card of virtio with two queues, and packets
# that are not theirs pass.
virtio_net() {
    folder=$(mktemp -d)
    for _ in $(seq 50); do ip link show dev eth0 > /dev/null 2>&1 && break; sleep 0.1; done
    queues=$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
    echo "queues: $queues"
    [ "$queues" = 2 ] || return 1
    ip addr add 192.0.2.2/24 dev eth0
    ip link set eth0 up
    printf 'interfaces = ["eth0"]\nvips = ["203.0.113.10"]\ndirectors = ["192.0.2.1"]\nmss_clamp = true\n' > "$folder/redirect.toml"
    printf 'interfaces = ["eth0"]\ntable = "table.toml"\n' > "$folder/director.toml"
    printf '[[tables]]\nname = "t"\nhash_key = "12345678901234561234567890123456"\nseed = "34567890123456783456789012345678"\nbinds = [{ ip = "203.0.113.10", proto = "tcp", port = 80 }]\nbackends = [{ ip = "192.0.2.1", state = "active", healthy = true }, { ip = "192.0.2.3", state = "active", healthy = true }]\n' > "$folder/table.toml"
    for name in director redirect; do
        program=$GLB_PROGRAMS/glb-$name
        "$program" run --config "$folder/$name.toml" &
        for _ in $(seq 300); do ip -details link show dev eth0 | grep -q "prog/xdp" && break; sleep 0.2; done
        ip -details link show dev eth0
        # "xdp" is native mode, "xdpgeneric" the kernel's.
        ip link show dev eth0 | grep -q ' xdp ' || ip -details link show dev eth0 | grep -q 'xdp/id' || return 1
        ping -c 3 -W 5 192.0.2.1 || return 1
        kill %% && wait %%
        "$program" detach --config "$folder/$name.toml" || return 1
        ip -details link show dev eth0 | grep -q "prog/xdp" && return 1
    done
    return 0
}

while IFS=$'\t' read -r number folder command; do
    start=$(cut -d. -f1 /proc/uptime)
    # An earlier kernel than the tests were written on may lack what a test waits for.
    (cd "$folder" && export CARGO_MANIFEST_DIR="$folder" && eval "$command") > $results/$number.log 2>&1 < /dev/null
    echo "$? $(($(cut -d. -f1 /proc/uptime) - start))" > $results/$number.result
done < $results/checks
