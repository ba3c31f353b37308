#pragma once

#include <filesystem>

namespace lit_sft {

/// Compares a folder with its manifest.json: sizes of the graph and its weights, and hashes of what is read by
/// libraries that trust it more than we do. JSON files may be edited.
///
/// @throws UserError naming the file that is missing, incomplete or changed.
void check_manifest(const std::filesystem::path& folder);

}  // namespace lit_sft
