#pragma once

#include <cstddef>
#include <string>

namespace lit_sft {

/// Cores that this process may use, hyper-threads of one core counted once, no more than its group's share of time.
int physical_cores();

/// Bytes that can be taken without swapping, of the machine and of the group of this process.
std::size_t available_memory();

/// Such as `1,234 MB`, of 2^20 bytes.
std::string megabytes(std::size_t bytes);

}  // namespace lit_sft
