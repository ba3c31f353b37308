#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace lit_sft {

/// SHA-512 of bytes (FIPS 180-4).
std::array<std::uint8_t, 64> sha512(std::string_view bytes);

}  // namespace lit_sft
