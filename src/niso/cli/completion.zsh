#compdef niso
# zsh completion for niso(1), printed by `niso completion zsh`.
_niso() {
  local niso=@NISO@ word
  local -a words_found
  [[ -x $niso ]] || niso=niso
  for word in "${(@f)$($niso complete zsh -- "${(@Q)words[1,CURRENT-1]}" "${(Q)PREFIX}" 2> /dev/null)}"; do
    case $word in
      '') ;;
      $'\tmanifests') _files -g '*.toml' ;;
      $'\tfolders') _files -/ ;;
      $'\tprograms') _command_names -e ;;
      *) words_found+=("${${word%%$'\t'*}//:/\\:}:${word#*$'\t'}") ;;
    esac
  done
  (( ! $#words_found )) || _describe -t words niso words_found
}
if [[ ${funcstack[1]} == _niso ]]; then _niso "$@"; else compdef _niso niso; fi
