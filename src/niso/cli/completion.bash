# bash completion for niso(1), printed by `niso completion bash`.
_niso() {
  local niso=@NISO@ word
  [ -x "$niso" ] || niso=niso
  COMPREPLY=()
  while IFS= read -r word; do
    case $word in
      $'\tmanifests')
        compopt -o filenames
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -d -- "$2"; compgen -f -X '!*.toml' -- "$2")
        ;;
      $'\tfolders')
        compopt -o filenames
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -d -- "$2")
        ;;
      $'\tprograms') mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -c -- "$2") ;;
      *) COMPREPLY+=("${word%%$'\t'*}") ;;
    esac
  done < <("$niso" complete bash -- "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2> /dev/null)
}
complete -F _niso niso
