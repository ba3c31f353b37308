#include "machine.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <utility>

namespace lit_sft {
namespace {

/// A file of the control group: of version 2, as a container sees its own.
std::string group_file(const char* name) { return std::string("/sys/fs/cgroup/") + name; }

template <class T>
T read_number(const std::string& file, T otherwise) {
    T number{};
    std::ifstream stream(file);
    return stream >> number ? number : otherwise;
}

/// The number behind a name at the beginning of a line; 0 if there is none.
std::size_t named_number(const std::string& file, const std::string& name) {
    std::ifstream stream(file);
    for (std::string line; std::getline(stream, line);) {
        std::istringstream words(line);
        std::string first;
        std::size_t number = 0;
        if (words >> first >> number && first == name) return number;
    }
    return 0;
}

/// Of the control group; a large number without one.
int share_of_time() {
    std::ifstream stream(group_file("cpu.max"));
    double quota = 0;
    double period = 0;
    if (!(stream >> quota >> period) || period <= 0) return std::numeric_limits<int>::max();
    return std::max(1, static_cast<int>(std::ceil(quota / period)));
}

}  // namespace

int physical_cores() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
    std::set<std::pair<int, int>> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(static_cast<std::size_t>(cpu), &allowed)) continue;
        const auto folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
        // Where the machine does not tell, each is a core of its own.
        cores.emplace(read_number(folder + "physical_package_id", 0), read_number(folder + "core_id", 100000 + cpu));
    }
    return std::clamp(static_cast<int>(cores.size()), 1, share_of_time());
}

std::size_t available_memory() {
    const auto of_machine = named_number("/proc/meminfo", "MemAvailable:") * 1024;
    const auto limit = read_number<std::size_t>(group_file("memory.max"), 0);  // 0: "max", or no group
    if (limit == 0) return of_machine;
    // Pages of files that can be dropped count as used, those of the weights among them.
    const auto used = read_number<std::size_t>(group_file("memory.current"), 0);
    const auto held = used - std::min(used, named_number(group_file("memory.stat"), "inactive_file"));
    return std::min(of_machine, limit - std::min(limit, held));
}

std::string megabytes(std::size_t bytes) {
    auto digits = std::to_string((bytes + (1 << 20) - 1) >> 20);
    for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > 0; at -= 3)
        digits.insert(static_cast<std::size_t>(at), 1, ',');
    return digits + " MB";
}

}  // namespace lit_sft
